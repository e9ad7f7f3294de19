"""Exactly the assistant's tokens are learnt, under templates of every shape."""

import random

import pytest

from finetune.data.formatter import ChatFormatter
from finetune.data.rows import Chat, Completion, RowError, Text, read_row
from tests.fakes.chat_templates import FAMILIES, chat_tokenizer, family_tokenizer

WORDS = ["hello", "Bonn", "é", "日本", "1 + 1", "\n\n", "  ", "a\tb", "🙂", "<b>", "done.", "\n", "### User:"]
NAMES = sorted(FAMILIES)


def random_chat(rng: random.Random, *, system: bool) -> Chat:
    """Turns of odd texts; every one has a letter at both ends, which no template trims."""

    def text() -> str:
        return "x" + " ".join(rng.choices(WORDS, k=rng.randint(0, 8))) + "y"

    messages = [{"role": "system", "content": text()}] if system and rng.random() < 0.5 else []
    for _ in range(rng.randint(1, 4)):
        messages += [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]
    return Chat(tuple(messages))


def answers(chat):
    return [message["content"] for message in chat.messages if message["role"] == "assistant"]


def learnt(tokenizer, example):
    """The learnt text."""
    return tokenizer.decode(example.tokens[example.supervised], clean_up_tokenization_spaces=False)


def user_and(answer, question="Hi"):
    return Chat(({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


@pytest.mark.parametrize("name", NAMES)
def test_the_learnt_tokens_are_the_answers_and_their_ends(name):
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    formatter = ChatFormatter(tokenizer)
    rng = random.Random(name)
    for _ in range(25):
        chat = random_chat(rng, system=family.has_system)
        (example,) = formatter.examples(chat, "a:1")
        space = " " if name == "mistral" else ""
        assert learnt(tokenizer, example) == "".join(f"{space}{answer}{family.end}" for answer in answers(chat))
        assert example.tokens.tolist() == tokenizer.apply_chat_template(list(chat.messages), return_dict=False)
        if family.bos:
            bos = tokenizer.bos_token_id
            assert example.tokens[0] == bos
            assert (example.tokens == bos).sum() == 1
            assert not example.supervised[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_is_what_the_model_is_asked_with(name):
    tokenizer = family_tokenizer(name)
    chat = user_and("xy", "What\n\n")
    (example,) = ChatFormatter(tokenizer).examples(chat, "a:1")
    asked = tokenizer.apply_chat_template(list(chat.messages[:1]), add_generation_prompt=True, return_dict=False)
    assert example.tokens[~example.supervised][: len(asked)].tolist() == asked
    assert not example.supervised[: len(asked)].any()


@pytest.mark.parametrize("name", ["mistral", "gemma"])
def test_a_system_turn_that_the_template_refuses_is_a_bad_row(name):
    chat = Chat(({"role": "system", "content": "Be brief."}, *user_and("yes").messages))
    with pytest.raises(RowError, match=r"chat template refuses it: .*support"):
        ChatFormatter(family_tokenizer(name)).examples(chat, "a:1")


def test_thoughts_that_a_template_drops_from_history_make_one_example_an_answer():
    tokenizer = family_tokenizer("qwen3")
    thought = "<think>\nhm\n</think>\n\n"
    chat = Chat((*user_and(thought + "one").messages, *user_and(thought + "two").messages))
    first, second = ChatFormatter(tokenizer).examples(chat, "a:1")
    assert [learnt(tokenizer, example) for example in (first, second)] == [
        f"{thought}one<|im_end|>", f"{thought}two<|im_end|>",
    ]  # fmt: skip
    assert "<|im_start|>assistant\none<|im_end|>" in tokenizer.decode(second.tokens), "history is as the model sees it"


@pytest.mark.parametrize("name", ["smollm2", "qwen2.5", "zephyr", "phi3"])
def test_an_answer_that_begins_with_white_space_is_encoded_after_the_finished_prompt(name):
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    chat = Chat((*user_and("\n\n\nfirst").messages, *user_and("\n second", "And?").messages))
    examples = ChatFormatter(tokenizer).examples(chat, "a:1")
    assert [learnt(tokenizer, example) for example in examples] == [
        f"\n\n\nfirst{family.end}",
        f"\n second{family.end}",
    ]
    for number, example in enumerate(examples):
        asked = tokenizer.apply_chat_template(
            list(chat.messages[: 2 * number + 1]), add_generation_prompt=True, return_dict=False
        )
        assert example.tokens[~example.supervised].tolist() == asked


def plain_tokenizer(template):
    return chat_tokenizer(template, ("<s>", "</s>"), "</s>")


ALPACA = (
    "{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)


def test_without_an_end_of_turn_in_the_template_each_answer_ends_the_text():
    tokenizer = plain_tokenizer(ALPACA)
    chat = Chat((*user_and("one").messages, *user_and("two").messages))
    examples = ChatFormatter(tokenizer).examples(chat, "a:1")
    assert [learnt(tokenizer, example) for example in examples] == ["one</s>", "two</s>"]


def test_a_template_whose_generation_prompt_is_not_the_beginning_is_refused():
    template = ALPACA.replace("'### assistant:\n'", "'### assistant:\n<think>\n'")
    with pytest.raises(RowError, match="cannot be proven"):
        ChatFormatter(plain_tokenizer(template)).examples(user_and("one"), "a:1")


def test_a_template_that_leaves_the_answer_out_is_refused():
    template = "{% for m in messages if m.role == 'user' %}{{ m.content + '\n' }}{% endfor %}"
    with pytest.raises(RowError, match="leaves the answer out"):
        ChatFormatter(plain_tokenizer(template)).examples(user_and("one"), "a:1")


def test_marks_that_mark_nothing_are_refused():
    template = FAMILIES["marked"].template.replace("m.role == 'assistant'", "m.role == 'model'")
    tokenizer = chat_tokenizer(template, FAMILIES["marked"].specials, "<|im_end|>")
    with pytest.raises(RowError, match="marks no answer"):
        ChatFormatter(tokenizer).examples(user_and("one"), "a:1")


def called(arguments):
    calls = [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}]
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "yes"},
        {"role": "assistant", "content": "It rains."},
    ]
    return read_row({"messages": messages, "tools": [{"name": "weather"}]}).content


@pytest.mark.parametrize("arguments", ['{"city": "Bonn"}', {"city": "Bonn"}], ids=["text", "object"])
def test_tool_calls_are_learnt_where_the_template_writes_them(arguments):
    tokenizer = family_tokenizer("qwen2.5")
    (example,) = ChatFormatter(tokenizer).examples(called(arguments), "a:1")
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call><|im_end|>'
    assert learnt(tokenizer, example) == f"{call}It rains.<|im_end|>"
    assert '"function"' in tokenizer.decode(example.tokens[~example.supervised]), "the tools are in the prompt"


@pytest.mark.parametrize("marked", [False, True])
def test_the_end_of_a_turn_is_learnt_after_a_call_that_ends_in_a_special_token(marked):
    specials = (*FAMILIES["qwen2.5"].specials, "<|call_start|>", "<|call_end|>")
    content = (
        "{{ m.content }}{% for c in m.tool_calls or [] %}{{ '<|call_start|>' + c.function.name + '<|call_end|>' }}"
    )
    content += "{% endfor %}"
    if marked:
        content = "{% if m.role == 'assistant' %}{% generation %}" + content + "{% endgeneration %}{% else %}" + content
        content += "{% endif %}"
    template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}" + content + "{{ '<|im_end|>\n' }}"
    template += "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    tokenizer = chat_tokenizer(template, specials, "<|im_end|>")
    (example,) = ChatFormatter(tokenizer).examples(called("{}"), "a:1")
    assert learnt(tokenizer, example) == "<|call_start|>weather<|call_end|><|im_end|>It rains.<|im_end|>"


def test_the_end_of_a_turn_is_learnt_after_an_answer_that_brings_an_end_of_its_own():
    tokenizer = family_tokenizer("smollm2")
    (example,) = ChatFormatter(tokenizer).examples(user_and("Hello.<|endoftext|>"), "a:1")
    assert learnt(tokenizer, example) == "Hello.<|endoftext|><|im_end|>"


def test_tool_calls_that_the_template_leaves_out_are_refused():
    with pytest.raises(RowError, match=r"does not write tool calls \(weather\)"):
        ChatFormatter(family_tokenizer("zephyr")).examples(called("{}"), "a:1")


def test_a_model_without_a_template_takes_prompts_and_texts_but_no_chats():
    tokenizer = chat_tokenizer(None, ("<s>", "</s>"), "</s>", "<s>")
    formatter = ChatFormatter(tokenizer)
    with pytest.raises(RowError, match="no chat template: use an instruct model"):
        formatter.examples(user_and("yes"), "a:1")
    (pair,) = formatter.examples(Completion("2 + 2 =", " 4"), "a:1")
    assert tokenizer.decode(pair.tokens) == "<s>2 + 2 = 4</s>"
    assert learnt(tokenizer, pair) == " 4</s>"
    (text,) = formatter.examples(Text("once"), "a:1")
    assert tokenizer.decode(text.tokens) == "<s>once</s>"
    assert text.supervised.all()
    (whole,) = formatter.examples(Text("<s>once</s>"), "a:1")
    assert whole.tokens.tolist() == text.tokens.tolist(), "neither end is doubled"


def test_no_token_crosses_from_a_prompt_into_its_completion():
    tokenizer = chat_tokenizer(None, ("<s>", "</s>"), "</s>")
    (pair,) = ChatFormatter(tokenizer).examples(Completion("a\n", "\n\nb"), "a:1")
    assert learnt(tokenizer, pair) == "\n\nb</s>"


def test_a_prompt_and_completion_become_a_chat_where_there_is_a_template():
    tokenizer = family_tokenizer("smollm2")
    (example,) = ChatFormatter(tokenizer).examples(Completion("2 + 2?", "4"), "a:1")
    assert example.tokens.tolist() == ChatFormatter(tokenizer).examples(user_and("4", "2 + 2?"), "")[0].tokens.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_all_turns_are_learnt_where_that_is_wanted(name):
    tokenizer = family_tokenizer(name)
    (example,) = ChatFormatter(tokenizer, "all").examples(user_and("one"), "a:1")
    assert example.supervised.all()
    assert example.tokens.tolist() == tokenizer.apply_chat_template(list(user_and("one").messages), return_dict=False)


def test_an_example_too_short_to_learn_from_is_refused():
    tokenizer = chat_tokenizer(None, ("<s>", "</s>"), "</s>")
    tokenizer.eos_token = None
    with pytest.raises(RowError, match="fewer than two tokens"):
        ChatFormatter(tokenizer).examples(Text("a"), "a:1")
