"""Guessing tokens from the text so far: what it gains where answers quote, and what it costs where they do not.

    .venv/bin/python -m benchmarks.speculate [--threads 2] [--rounds 3] [--streams 1]

Two engines in this process hold the starter model, one with guesses and one without, and answer the same prompts in
turn, greedily (plain, guess, plain, guess, …), after one round that is not counted; medians of the rounds. The notice,
the letter and the list are copied nearly word for word by this small model; of the code it copies the first half and
then writes something else, and it renames nothing.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.peers import starter
from localllm.paths import Home
from serve.engine.loaded import LoadedModel
from serve.engine.request import Job
from serve.engine.types import Delta, EngineSpec, Finished, GenerateRequest, SamplingParams

_NOTICE = """The reading room on the second floor will be closed from Monday to Thursday while the windows are repaired.
Readers who have ordered books from the store may collect them at the front desk between nine and five. Maps and
newspapers stay available in the basement, where there are eight desks and a copying machine. The small hall opens on
Friday with a lecture about the bridges of the old town; admission is free, and coffee is served afterwards."""
_CODE = '''def total_price(items, discount):
    """Add up the prices of all items and take the discount off."""
    result = 0
    for item in items:
        if item.price < 0:
            raise ValueError("a price is negative")
        result += item.price * item.quantity
    if discount > 0:
        result -= result * discount / 100
    return result


def print_receipt(items, discount):
    """Print one line for each item, then the total."""
    for item in items:
        print(item.name, item.quantity, item.price)
    print("total:", total_price(items, discount))
'''
_LETTER = """Dear Ms Carter,

Thank you for your letter of 3 March. We are sorry to hear that the kettle arrived with a broken handle. A new one was
sent to you this morning by parcel post, and should be with you within four working days. There is no need to return
the broken one. Please accept our apologies for the trouble that this has caused you.

Yours sincerely,
The service department"""
_LIST = "\n".join(
    f"{n}. {name}: {price} euros"
    for n, (name, price) in enumerate(
        (
            ("a blue notebook with ruled pages", 3),
            ("a box of twelve coloured pencils", 7),
            ("a desk lamp with a green shade", 24),
            ("a calendar with pictures of lighthouses", 11),
            ("a pair of scissors for left hands", 9),
            ("a globe that shows the rivers of the world", 38),
            ("a wooden ruler of thirty centimetres", 2),
            ("a fountain pen with two spare nibs", 19),
        ),
        1,
    )
)
_QUOTE = "Repeat the following text exactly:\n\n"


@dataclass(frozen=True)
class Case:
    """A prompt.

    Attributes:
        name: In the table.
        prompt: What the person says.
    """

    name: str
    prompt: str


CASES = (
    Case("a notice, repeated", _QUOTE + _NOTICE),
    Case("code, half of it copied", _QUOTE + _CODE),
    Case("a letter, repeated", _QUOTE + _LETTER),
    Case("a list, repeated", _QUOTE + _LIST),
    Case("code, some of it copied", f"Rewrite this code with the variable result renamed to amount:\n\n{_CODE}"),
    Case("prose", "Tell me how bread is baked, in your own words."),
)


@dataclass(frozen=True)
class Answer:
    """What came, and how fast."""

    texts: tuple[str, ...]
    n_tokens: int
    decode_seconds: float
    n_steps: int

    @property
    def rate(self) -> float:
        """Tokens a second after the first token."""
        return self.n_tokens / self.decode_seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=1, help="requests at a time, all with the same prompt")
    parser.add_argument("--tokens", type=int, default=320, help="longest answer")
    parser.add_argument("--show", action="store_true", help="print the answers too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = str(starter(Home(Path(directory)).ensure()))
        plain = LoadedModel(EngineSpec(path=path, n_ctx=8192, n_threads=args.threads, n_guess=0))
        guessing = LoadedModel(EngineSpec(path=path, n_ctx=8192, n_threads=args.threads))
        print(
            "| answer | plain, tok/s | guessing, tok/s | ratio | tokens a step | same text |\n|---|---|---|---|---|---|"
        )
        for case in CASES:  # the engine learns what wide batches cost, as it would in its first minute
            answer(guessing, case, args)
        for case in CASES:
            print(measure(plain, guessing, case, args), flush=True)


def measure(plain: LoadedModel, guessing: LoadedModel, case: Case, args: argparse.Namespace) -> str:
    """One row of the table."""
    rounds = [(answer(plain, case, args), answer(guessing, case, args)) for _ in range(args.rounds)]
    slow, fast = median(a.rate for a, _ in rounds), median(b.rate for _, b in rounds)
    last = rounds[-1][1]
    same = all(a.texts == b.texts for a, b in rounds)
    if args.show:
        print(f"--- {case.name}\n{last.texts[0]}\n---")
    per_step = last.n_tokens / last.n_steps
    return f"| {case.name} | {slow:.1f} | {fast:.1f} | {fast / slow:.2f} | {per_step:.1f} | {'yes' if same else 'no'} |"


def answer(model: LoadedModel, case: Case, args: argparse.Namespace) -> Answer:
    """Answer ``case`` once, in a namespace of its own: no prefix is reused."""
    scheduler = model.scheduler
    assert scheduler is not None
    messages = ({"role": "user", "content": case.prompt},)
    prompt = tuple(model.tokenize(GenerateRequest(messages=messages)))
    client = str(time.perf_counter_ns())
    for i in range(args.streams):
        scheduler.submit(Job(i, prompt, SamplingParams(temperature=0), args.tokens, client=client))
    texts = [""] * args.streams
    n_tokens = n_steps = 0
    began = 0.0
    while not scheduler.idle:
        for job_id, event in scheduler.step():
            if isinstance(event, Delta):
                texts[job_id] += event.text
            elif isinstance(event, Finished):
                n_tokens += event.usage.n_completion - 1
        if began:
            n_steps += args.streams
        elif all(request.n_generated for request in scheduler._running):
            began = time.perf_counter()
    return Answer(tuple(texts), n_tokens, time.perf_counter() - began, n_steps)


if __name__ == "__main__":
    main()
