"""What the scheduler needs from a model, and the llama.cpp form of it."""

from collections.abc import Collection, Sequence
from typing import Protocol

from serve.engine.constrained import Candidates
from serve.engine.constraint_types import TokenMatcher
from serve.engine.llama import LlamaContext, LlamaModel, SamplerChain
from serve.engine.llama_adapters import LoadedAdapters
from serve.engine.logprobs import Logits
from serve.engine.request import Adapter, AdapterSet, State
from serve.engine.step_meter import StepMeter
from serve.engine.types import SamplingParams


class Chain(Protocol):
    """A request's sampler."""

    def close(self) -> None:
        """Free it."""


class Backend(Protocol):
    """A model with one KV cache, driven batch by batch.

    Attributes:
        n_ctx: Tokens that one sequence may hold.
        n_batch: Rows of a batch.
        n_seq: Sequences that may exist together.
        can_share: Whether a prefix of one sequence may become the beginning of another.
    """

    n_ctx: int
    n_batch: int
    n_seq: int
    can_share: bool

    def clear_batch(self) -> None:
        """Begin a new batch."""

    def add(self, tokens: Sequence[int], pos: int, seq: int, *, logits: int) -> int:
        """Append rows, the last ``logits`` of them with logits; return the row of the last token."""

    def decode(self) -> int:
        """Run the batch: 0 done, 1 no room in the cache (nothing changed), below 0 fatal."""

    def share(self, source: int, target: int, n: int) -> bool:
        """Let ``target`` begin with the first ``n`` positions of ``source``; False where they are not all there."""

    def drop(self, seq: int, start: int = 0) -> None:
        """Forget a sequence from position ``start`` on."""

    def load_adapters(self, adapters: AdapterSet, in_use: Collection[Adapter]) -> None:
        """Make sure that ``adapters`` are in memory and stay there; ``in_use`` by other requests are not let go.

        Raises:
            RequestError: One cannot be loaded.
            EngineBusyError: There is no memory for so many at once.
        """

    def use_adapters(self, adapters: AdapterSet) -> None:
        """Compute the next batches with ``adapters``, which have been loaded; no change costs nothing."""

    def state(self, seq: int) -> State:
        """What a sequence holds, as bytes that :meth:`restore` takes."""

    def restore(self, seq: int, state: State) -> bool:
        """Fill an empty sequence; False where the cache has no room for it."""

    def chain(self, params: SamplingParams, prompt: Sequence[int]) -> Chain:
        """A new sampler."""

    def sample(self, chain: Chain, row: int, matcher: TokenMatcher | None = None) -> int:
        """Choose a token from the logits of ``row``, one that ``matcher`` allows.

        Raises:
            RequestError: The matcher's grammar has become too complex.
        """

    def logits(self, row: int) -> Logits:
        """The logits of ``row``, float32 of shape (n_vocab,); valid until the next batch."""

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for a special one."""

    def token_text(self, token: int) -> bytes:
        """The bytes of a token, a special one's too."""

    def is_eog(self, token: int) -> bool:
        """Whether a token ends the generation."""


class LlamaBackend:
    """:class:`Backend` on llama.cpp.

    Args:
        model: The weights.
        context: Its KV cache.
        n_seq: Sequences the context was made for.
        adapters: Those in memory.
        meter: Told how long llama.cpp takes.
    """

    def __init__(
        self,
        model: LlamaModel,
        context: LlamaContext,
        n_seq: int,
        adapters: LoadedAdapters,
        meter: StepMeter | None = None,
    ) -> None:
        self._model = model
        self._context = context
        self.n_ctx = context.n_ctx
        self.n_batch = context.batch.capacity
        self.n_seq = n_seq
        # A recurrent state has no positions: it can be continued, not cut.
        self.can_share = not model.is_recurrent
        self.clear_batch = context.batch.clear
        self.add = context.batch.add
        meter = meter or StepMeter()
        self.decode = meter.timed(context.decode)
        self._sample = meter.timed(self._take)
        self.state = context.state
        self.restore = context.restore
        self.piece = model.piece
        self.token_text = model.token_text
        self._candidates = Candidates(model.n_vocab)
        self.is_eog = model.is_eog
        self.load_adapters = adapters.load
        self.use_adapters = adapters.use

    def share(self, source: int, target: int, n: int) -> bool:
        """As in :class:`Backend`; refuses where a sliding window has already let go of what is needed."""
        needed_from = max(0, n - self._model.n_swa) if self._model.n_swa else 0
        if self._context.first_position(source) > needed_from:
            return False
        self._context.share(source, target, n)
        return True

    def drop(self, seq: int, start: int = 0) -> None:
        """As in :class:`Backend`."""
        self._context.drop(seq, start)

    def chain(self, params: SamplingParams, prompt: Sequence[int]) -> Chain:
        """As in :class:`Backend`."""
        return SamplerChain(params, self._model.n_vocab, self.n_ctx, prompt)

    def logits(self, row: int) -> Logits:
        """As in :class:`Backend`."""
        return self._context.logits(row, self._model.n_vocab)

    def sample(self, chain: Chain, row: int, matcher: TokenMatcher | None = None) -> int:
        """As in :class:`Backend`."""
        return self._sample(chain, row, matcher)

    def _take(self, chain: Chain, row: int, matcher: TokenMatcher | None) -> int:
        assert isinstance(chain, SamplerChain)
        if matcher is not None:
            return self._candidates.sample(chain.handle, self.logits(row), matcher)
        return chain.sample(self._context, row)
