"""Rows become examples: split by content, without duplicates, masked and cut."""

import json

import pytest

from finetune.data.dataset import load_dataset, scan
from finetune.data.formatter import ChatFormatter
from finetune.recipe import Recipe
from localllm.errors import DataError

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator(["user assistant system hello number"], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", additional_special_tokens=["<|im_start|>"]
    )
    made.chat_template = TEMPLATE
    return made


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Recipe(model="m", data=(str(path),))


def chat(number):
    answer = {"role": "assistant", "content": f"It is {number}."}
    return {"messages": [{"role": "user", "content": f"Which number? {number}"}, answer]}


def sources(examples):
    return {example.source for example in examples}


def texts(tokenizer, examples):
    return {tokenizer.decode(example.tokens[example.supervised]) for example in examples}


def test_answers_and_their_end_are_learnt_and_nothing_else(tmp_path, tokenizer):
    turns = [*chat(1)["messages"], *chat(2)["messages"]]
    data = scan(write(tmp_path / "a.jsonl", [{"messages": turns}]), ChatFormatter(tokenizer))
    assert texts(tokenizer, data.train) == {"It is 1.<|im_end|>It is 2.<|im_end|>"}


def test_a_row_stays_on_its_side_when_others_come(tmp_path, tokenizer):
    few = scan(write(tmp_path / "a.jsonl", [chat(i) for i in range(60)]), ChatFormatter(tokenizer))
    many = scan(write(tmp_path / "b.jsonl", [chat(i) for i in reversed(range(200))]), ChatFormatter(tokenizer))
    assert few.valid
    assert texts(tokenizer, few.valid) <= texts(tokenizer, many.valid)
    assert texts(tokenizer, few.train) <= texts(tokenizer, many.train)
    assert not texts(tokenizer, many.train) & texts(tokenizer, many.valid)


def test_duplicates_are_left_out_and_counted(tmp_path, tokenizer):
    data = scan(write(tmp_path / "a.jsonl", [chat(1), chat(1), chat(2)]), ChatFormatter(tokenizer))
    assert data.report.n_duplicates == 1
    assert len(data.train) + len(data.valid) == 2


def test_bad_rows_stop_it_with_file_and_line(tmp_path, tokenizer):
    recipe = write(tmp_path / "a.jsonl", [chat(1), {"foo": 1}, chat(2)])
    with pytest.raises(DataError, match=r"a.jsonl:2: its fields \(foo\)"):
        load_dataset(recipe, ChatFormatter(tokenizer))
    data = load_dataset(recipe.model_copy(update={"skip_bad": True}), ChatFormatter(tokenizer))
    assert len(data.train) + len(data.valid) == 2
    assert "1 bad rows are left out." in data.report.lines()


def test_long_rows_are_cut_and_one_without_an_answer_left_is_bad(tmp_path, tokenizer):
    long_answer = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "word " * 200}]}
    long_question = {"messages": [{"role": "user", "content": "word " * 200}, {"role": "assistant", "content": "x"}]}
    recipe = write(tmp_path / "a.jsonl", [long_answer, long_question]).model_copy(update={"max_length": 64})
    data = scan(recipe, ChatFormatter(tokenizer))
    assert [len(example.tokens) for example in data.train] == [64]
    assert data.report.n_cut == 2
    assert "no token to learn is left" in data.report.bad[0].reason


def test_a_valid_file_is_the_held_out_side(tmp_path, tokenizer):
    for name, rows in (("train", range(20)), ("valid", range(20, 23))):
        write(tmp_path / f"{name}.jsonl", [chat(i) for i in rows])
    data = scan(Recipe(model="m", data=(str(tmp_path),)), ChatFormatter(tokenizer))
    assert (len(data.train), len(data.valid)) == (20, 3)
    assert sources(data.valid) == {"valid.jsonl:1", "valid.jsonl:2", "valid.jsonl:3"}


def test_chats_need_a_template_and_text_does_not(tmp_path, tokenizer):
    bare = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    data = scan(
        write(tmp_path / "a.jsonl", [chat(1), {"text": "hello"}, {"prompt": "a", "completion": "b"}]),
        ChatFormatter(bare),
    )
    assert [bad.source for bad in data.report.bad] == ["a.jsonl:1"]
    assert "no chat template" in data.report.bad[0].reason
    assert texts(bare, data.train) == {"hello<|im_end|>", "b<|im_end|>"}


def test_a_tool_call_that_the_template_leaves_out_is_a_bad_row(tmp_path, tokenizer):
    call = {"type": "function", "function": {"name": "weather", "arguments": {}}}
    turns = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    data = scan(write(tmp_path / "a.jsonl", [{"messages": turns}]), ChatFormatter(tokenizer))
    assert "does not write tool calls" in data.report.bad[0].reason


def test_prompts_for_samples_end_before_the_answer(tmp_path, tokenizer):
    data = scan(write(tmp_path / "a.jsonl", [chat(i) for i in range(30)]), ChatFormatter(tokenizer))
    assert all(prompt[-1]["role"] == "user" for prompt in data.prompts)
