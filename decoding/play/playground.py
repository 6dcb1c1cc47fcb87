"""The session behind a page: loaded models, texts that are being written, and who waits for which."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from decoding.errors import DecodingError, OptionError, one_line
from decoding.models.forward_errors import OutOfMemoryError
from decoding.models.loading import load
from decoding.play.requests import STOPPED, Limits, Progress, TextRequest, Written
from decoding.play.turns import Turns
from decoding.play.writing import counted, write
from decoding.strategies.named_readers import named_readers
from decoding.strategies.registry import parse_strategy

__all__ = ["Job", "Playground"]

POLL = 0.2  # seconds after which a text that waits looks whether it is still wanted
WARM_UP_TOKENS = 8  # as many as `decoding compare` has
LOADED = 2  # models that stay loaded, those that were used last

Loader = Callable[[str], tuple[Any, Any]]


class Job:
    """Texts that are being written for one visitor, one after the other, in a thread of their own.

    A page that goes away cannot hold the others up: the thread does not wait for a reader.
    """

    def __init__(self, requests: Sequence[TextRequest]) -> None:
        self._states = tuple(Progress(request, note="waiting") for request in requests)
        self._version = 0
        self._is_done = False
        self._changed = threading.Condition()
        self.stopped = threading.Event()
        self.gone = threading.Event()

    def stop(self) -> None:
        """End the text that is being written after its next token, and write no other."""
        self.stopped.set()

    def leave(self) -> None:
        """Stop, since nobody reads any more."""
        self.gone.set()
        self.stop()

    def tell(self, index: int, **changes: Any) -> None:
        """Change the state of one text."""
        with self._changed:
            states = list(self._states)
            states[index] = dataclasses.replace(states[index], **changes)
            self._states = tuple(states)
            self._version += 1
            self._changed.notify_all()

    def finish(self) -> None:
        """Tell readers that no state will change any more."""
        with self._changed:
            self._is_done = True
            self._changed.notify_all()

    def states(self) -> Iterator[tuple[Progress, ...]]:
        """The states of the texts whenever one has changed, the last when all is done.

        A reader that is slow misses some. One that ends early, as when its page is closed, ends the texts.
        """
        seen = -1
        try:
            while True:
                with self._changed:
                    while self._version == seen and not self._is_done:
                        self._changed.wait()
                    if self._version == seen:
                        return
                    seen, states = self._version, self._states
                yield states
        finally:
            self.leave()


class Playground:
    """Writes texts for the visitors of a page, one text at a time.

    Args:
        models: names that a page offers; the first is loaded by :meth:`load_first`.
        limits: of what a visitor may ask for.
        loader: loads a model and its tokenizer by its name.
    """

    def __init__(
        self, models: Sequence[str] = ("expert",), limits: Limits | None = None, loader: Loader = load
    ) -> None:
        self.models = tuple(models)
        self.limits = limits or Limits()
        self._load = loader
        self._loaded: dict[str, tuple[Any, Any]] = {}  # the one that was used last is the last
        self._turns = Turns(self.limits.waiting)
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    def load_first(self) -> None:
        """Load the first model, before a visitor asks for it; one who does meanwhile waits.

        Raises:
            DecodingError: it cannot be loaded.
        """
        self._model(self.models[0])

    def warm_up(self, strategies: Sequence[str]) -> None:
        """Write a few tokens with the first model, which is slower at them, unless a visitor's text does so already.

        Args:
            strategies: that write them, as command lines have them.
        """
        nobody = threading.Event()
        nobody.set()
        with contextlib.suppress(DecodingError), self._turns.place() as ahead:
            for strategy in strategies if ahead(0) == 0 else ():
                request = TextRequest(self.models[0], parse_strategy(strategy), "The", WARM_UP_TOKENS)
                write(*self._model(request.model), request, threading.Event(), nobody, lambda text, note: None)

    def start(self, visitor: str, requests: Sequence[TextRequest]) -> Job:
        """Begin to write texts for a visitor, whose earlier ones end.

        Args:
            visitor: anything that tells visitors apart.
            requests: what to write, in this order.

        Raises:
            DecodingError: a request is over a limit, or names a model that it may not.
        """
        for request in requests:
            self.limits.check(request)
            self._check_models(request)
        job = Job(requests)
        with self._lock:
            before, self._jobs[visitor] = self._jobs.get(visitor), job
        if before is not None:
            before.leave()
        threading.Thread(target=self._run, args=(visitor, job, tuple(requests)), daemon=True).start()
        return job

    def stop(self, visitor: str) -> None:
        """Stop the texts of a visitor, if there are any; what is written so far stays."""
        self._tell(visitor, Job.stop)

    def leave(self, visitor: str) -> None:
        """End the texts of a visitor who is gone."""
        self._tell(visitor, Job.leave)

    def _tell(self, visitor: str, what: Callable[[Job], None]) -> None:
        with self._lock:
            job = self._jobs.get(visitor)
        if job is not None:
            what(job)

    def _run(self, visitor: str, job: Job, requests: tuple[TextRequest, ...]) -> None:
        try:
            with self._turns.place() as ahead:
                while waiting := ahead(POLL):
                    if job.stopped.is_set():
                        break
                    job.tell(0, note=f"waiting: the model is busy, {waiting} before this")
                for index, request in enumerate(requests):
                    if job.stopped.is_set():
                        job.tell(index, note=STOPPED)
                    else:
                        self._write(job, index, request)
        except DecodingError as error:  # of the line
            for index in range(len(requests)):
                job.tell(index, note=str(error), failed=True)
        finally:
            with self._lock:
                if self._jobs.get(visitor) is job:
                    del self._jobs[visitor]
            job.finish()

    def _write(self, job: Job, index: int, request: TextRequest) -> None:
        def tell(text: str, note: str) -> None:
            job.tell(index, text=text, note=note)

        try:
            if request.model not in self._loaded:
                job.tell(index, note=f"loading {request.model}")
            model, tokenizer = self._model(request.model)
            job.tell(index, note="reading the prompt")
            written = write(model, tokenizer, request, job.stopped, job.gone, tell)
        except OutOfMemoryError:
            less = "ask for fewer new tokens or a shorter prompt, or choose a smaller model"
            job.tell(index, note=f"{request.model} ran out of memory: {less}", failed=True)
        except DecodingError as error:
            job.tell(index, note=str(error), failed=True)
        except Exception as error:
            job.tell(index, note=f"unexpected {type(error).__name__}: {one_line(error)}", failed=True)
        else:
            job.tell(index, text=written.text, note=_figures(written), written=written)

    def _model(self, name: str) -> tuple[Any, Any]:
        """A model and its tokenizer; whose turn it is calls this, and who loads the first."""
        with self._loading:
            loaded = self._loaded.pop(name, None)
            if loaded is None:
                while len(self._loaded) >= LOADED:
                    del self._loaded[next(iter(self._loaded))]
                loaded = self._load(name)
            self._loaded[name] = loaded
            return loaded

    def _check_models(self, request: TextRequest) -> None:
        """Raise OptionError where a visitor names a model that the page does not offer."""
        if not self.limits.only_named_models:
            return
        readers = named_readers(type(request.spec.strategy), request.spec.parameters)
        for place, name in {"model": request.model, **readers}.items():
            if name not in self.models:
                raise OptionError(f"{place}={name!r}: must be one of this page's models: {', '.join(self.models)}")


def _figures(written: Written) -> str:
    rate = written.tokens_per_second
    parts = [counted(written.new_tokens)]
    parts += [] if rate is None else [f"{rate:,.0f} tokens a second" if rate >= 10 else f"{rate:.1f} tokens a second"]
    return " · ".join(parts + ([STOPPED] if written.stopped else []))
