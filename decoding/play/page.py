"""The page: gradio's components around a :class:`decoding.play.playground.Playground`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # which gradio reads when it is imported
# gradio asks matplotlib, where that is installed, for its backend; one that is named is not looked for, which takes
# the import of pyplot, half of the time of a first page.
os.environ.setdefault("MPLBACKEND", "agg")

import gradio as gr

from decoding.errors import DecodingError, InputError, OptionError, one_line
from decoding.explanation.explorer import explorer_script, explorer_style
from decoding.models.releases import RELEASES, is_fetched
from decoding.play.code import as_command, as_python
from decoding.play.controls import Control, controls_of, offered_strategies, offered_strategy, spec_of, summary_of
from decoding.play.playground import Job, Playground
from decoding.play.rendering import explained_sides, failure_html, texts_html
from decoding.play.requests import Progress, TextRequest, Written
from decoding.strategies.registry import StrategySpec

__all__ = ["build_page", "launch_settings", "serve"]

SIDES = ("left", "right")
FIRST = ("greedy", "contrastive-search")
PROMPT = "The old clockmaker"
TITLE = "Decoding strategies side by side"
LEAD = (
    "Two strategies continue the same text. Point at a token to see why it was chosen; click it, and then another "
    "candidate, to go on from that one."
)
QUIETLY: dict[str, Any] = {
    "show_progress": "hidden", "concurrency_limit": None, "trigger_mode": "multiple", "api_visibility": "private",
}  # fmt: skip
# What is typed is never replaced by what was chosen before: the page says what is wrong with it.
TYPED: dict[str, Any] = {"allow_custom_value": True, "filterable": True}
KEPT_FOR = 3600  # seconds for which texts of a page that is closed are kept


def build_page(playground: Playground) -> gr.Blocks:
    """The page; :meth:`gradio.Blocks.launch` with :func:`launch_settings` serves it."""
    # The explorer's data are a script that is none: nothing of it should run.
    warnings.filterwarnings("ignore", "A `<script>` tag was found", UserWarning)
    strategies = offered_strategies()
    names = [*playground.models]
    if not playground.limits.only_named_models:
        names += [name for name in RELEASES if is_fetched(name) and name not in names]
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(f'<div class="play-head"><h1>{TITLE}</h1><p>{LEAD}</p></div>', apply_default_css=False)
        # gradio takes components that no listener has yet for mere output: listeners are made with the controls.
        prompt = gr.Textbox(PROMPT, label="Prompt", lines=2, max_lines=12, elem_id="prompt", interactive=True)
        with gr.Row():
            may_name = not playground.limits.only_named_models
            model = gr.Dropdown(
                names, value=names[0], label="Model: a name, a folder or a .gguf file" if may_name else "Model",
                min_width=240, scale=2, interactive=True, **TYPED,
            )  # fmt: skip
            tokens = gr.Slider(
                1, playground.limits.new_tokens, min(60, playground.limits.new_tokens), step=1, label="New tokens",
                min_width=240, scale=2, interactive=True,
            )  # fmt: skip
            seed = gr.Number(0, label="Seed", min_width=140, interactive=True)
            chat = gr.Checkbox(
                False, label="Chat", info="the prompt is a user's message", min_width=150, interactive=True
            )
        with gr.Row():
            chosen = [
                gr.Dropdown(strategies, value=first, label=f"Strategy, {side}", min_width=240, **TYPED)
                for side, first in zip(SIDES, FIRST, strict=True)
            ]
        settings = gr.State({}, time_to_live=KEPT_FOR)  # what fields were set to, of strategies chosen before too

        # Called when the page is opened, and whenever a strategy is chosen: with what is made below.
        @gr.render(inputs=[settings, *chosen], triggers=[page.load, *(dropdown.change for dropdown in chosen)])
        def show_controls(set_before: dict[str, str], *names: str | None) -> None:
            with gr.Row():
                fields = [_controls(side, name, set_before) for side, name in zip(SIDES, names, strict=True)]
            for side, name, own in zip(SIDES, names, fields, strict=True):
                for parameter, field in own.items():
                    remember = partial(_remember, _key(side, offered_strategy(name), parameter))
                    field.change(remember, [settings, field], queue=False, **QUIETLY)
            common = [model, prompt, tokens, seed, chat]

            def begin(values: Mapping[Any, Any], request: gr.Request) -> Iterator[tuple[Any, ...]]:
                try:
                    wanted = []
                    for side, name, components in zip(SIDES, names, fields, strict=True):
                        own = {parameter: _as_text(values[field]) for parameter, field in components.items()}
                        spec = _spec(side, name, own)
                        wanted.append(_request(spec, *(values[component] for component in common)))
                    job = playground.start(str(request.session_hash), wanted)
                except DecodingError as error:
                    yield failure_html(str(error)), (), *[""] * len(codes)
                else:
                    yield from _follow(job, wanted, [None] * len(SIDES))

            given = {*common, *(field for side in fields for field in side.values())}  # a set: values come by component
            gr.on([write.click, prompt.submit], begin, given, outputs, **QUIETLY)

        with gr.Row():
            write = gr.Button("Write", variant="primary", min_width=120)
            stop = gr.Button("Stop", min_width=120)
        texts = gr.HTML(
            html_template='<div class="play-texts"></div>',
            js_on_load=_file("page.js"),
            elem_id="texts",
            apply_default_css=False,
        )
        with gr.Accordion("Copy as Python or as a command line", open=False):
            codes = [
                gr.Textbox(label=label, lines=lines, max_lines=16, buttons=["copy"], elem_classes=["play-code", kind])
                for label, lines, kind in (
                    (f"Python, {SIDES[0]}", 8, "play-python"),
                    (f"Python, {SIDES[1]}", 8, "play-python"),
                    ("Command line", 3, "play-command"),
                )
            ]
        kept = gr.State((), time_to_live=KEPT_FOR)
        outputs = [texts, kept, *codes]

        @texts.branch(inputs=[kept], outputs=outputs, **QUIETLY)
        def branch(states: Sequence[Progress], event: gr.EventData, request: gr.Request) -> Iterator[tuple[Any, ...]]:
            try:
                side, written = _shown(states, event.text)
                wanted = [state.request for state in states]
                wanted[side] = written.branch(event.position, event.token)
                job = playground.start(str(request.session_hash), [wanted[side]])
            except DecodingError as error:
                yield failure_html(str(error)), states, *[gr.skip()] * len(codes)
            else:
                yield from _follow(job, wanted, [None if n == side else state for n, state in enumerate(states)])

        @stop.click(queue=False, show_progress="hidden", api_visibility="private")
        def stop_texts(request: gr.Request) -> None:
            playground.stop(str(request.session_hash))

        @page.unload
        def leave(request: gr.Request) -> None:
            playground.leave(str(request.session_hash))

    return page


def launch_settings() -> dict[str, Any]:
    """Arguments of ``launch`` with which the page looks as it should, and fetches nothing from elsewhere."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "DejaVu Sans", "sans-serif")
    return {
        "theme": gr.themes.Default(font=fonts, font_mono=("ui-monospace", "DejaVu Sans Mono", "monospace")),
        "css": _file("page.css"),
        # gradio leaves @container out of its "css".
        "head": f"<style>{explorer_style()}</style><script>{explorer_script()}</script>",
        "share": False, "ssr_mode": False, "footer_links": [], "enable_monitoring": False, "max_file_size": "1kb",
    }  # fmt: skip


def serve(playground: Playground, host: str, port: int | None) -> None:
    """Serve the page until the process is interrupted; prints its address first.

    Args:
        playground: behind it.
        host: address to listen at.
        port: likewise; None is the first free one from 7860 on.

    Raises:
        OptionError: it cannot listen there.
        DecodingError: the first model cannot be loaded.
    """
    page = build_page(playground)
    try:
        _, address, _ = page.launch(
            server_name=f"[{host}]" if ":" in host else host,  # an address of IPv6 as browsers write it
            server_port=port, prevent_thread_lock=True, quiet=True, **launch_settings(),
        )  # fmt: skip
    except (OSError, ValueError) as error:
        if "empty port" in str(error):  # with the names that gradio has for what commands call --port
            busy = "the ports from 7860 to 7959 are" if port is None else f"port {port} is"
            raise OptionError(f"{busy} in use; give another with --port") from error
        where = host if port is None else f"{host}:{port}"
        raise OptionError(f"cannot listen at {where}: {one_line(error)}") from error
    print(f"{address} (Ctrl-C ends it)", flush=True)
    try:
        playground.load_first()  # while the page is opened; a text that is asked for meanwhile waits for it
        playground.warm_up(FIRST)
    except DecodingError:
        page.close(verbose=False)
        raise
    page.block_thread()


def _follow(job: Job, requests: Sequence[TextRequest], others: Sequence[Progress | None]) -> Iterator[tuple[Any, ...]]:
    """What the outputs show while texts are written.

    Args:
        job: that writes them.
        requests: of all texts of the page.
        others: the texts of the page that stay as they are; None where the job writes one.
    """
    codes: tuple[Any, ...] = (*map(as_python, requests), gr.skip())  # a branch's command line needs its tokens' texts
    for states in job.states():
        if job.gone.is_set():
            return  # the page has begun another text meanwhile, or is closed
        new = iter(states)
        shown = tuple(next(new) if other is None else other for other in others)
        if all(state.is_done for state in shown):
            codes = (*codes[:-1], as_command([state.written or state.request for state in shown]))
            yield texts_html(shown), shown, *codes
        else:
            yield texts_html(shown), gr.skip(), *codes
            codes = tuple(gr.skip() for _ in codes)


def _shown(states: Sequence[Progress], number: int) -> tuple[int, Written]:
    """The side of a text that the explorer shows, and the text."""
    sides = explained_sides(states)
    written = states[sides[number]].written if number < len(sides) else None
    if written is None:
        raise InputError("this text is no longer kept: write it again")
    return sides[number], written


def _remember(key: str, settings: dict[str, str], value: Any) -> None:
    """Note in the visitor's settings, which are gradio's own object, what a field is set to."""
    settings[key] = _as_text(value)


def _key(side: str, name: str, parameter: str) -> str:
    """Of a parameter's value in a visitor's settings."""
    return f"{side} {name} {parameter}"


def _controls(side: str, given: str | None, settings: Mapping[str, str]) -> dict[str, Any]:
    """The components of a strategy's parameters, by their names, as they were set before; none of what is no strategy,
    which is told.
    """
    with gr.Column(min_width=280):
        try:
            name = offered_strategy(given)
        except OptionError as error:
            gr.HTML(failure_html(str(error)), apply_default_css=False)
            return {}
        gr.HTML(f'<p class="play-summary"><b>{name}</b> {escape(summary_of(name))}</p>', apply_default_css=False)
        with gr.Row():
            return {
                control.name: _field(control, settings.get(_key(side, name, control.name), control.value))
                for control in controls_of(name)
            }


def _field(control: Control, value: str) -> Any:
    common: dict[str, Any] = {"label": control.name.replace("_", " "), "min_width": 190, "interactive": True}
    if control.kind == "slider":
        return gr.Slider(
            control.low, control.high, float(value or control.value), step=control.step, buttons=[], **common
        )
    if control.kind == "choice":
        return gr.Dropdown(list(control.choices), value=value, **TYPED, **common)
    if control.kind == "flag":
        return gr.Checkbox(value == "true", elem_classes=["play-flag"], **common)
    return gr.Textbox(value, placeholder=control.hint, max_lines=4, **common)


def _as_text(value: Any) -> str:
    """The value of a component as a command line has it."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else f"{value:g}"


def _spec(side: str, given: str | None, values: Mapping[str, str]) -> StrategySpec:
    """The strategy of a side, from what its fields are set to.

    Raises:
        OptionError: names the side.
    """
    try:
        return spec_of(offered_strategy(given), values)
    except OptionError as error:
        raise OptionError(f"{side}: {error}") from error


def _request(
    spec: StrategySpec,
    model: str | None,
    prompt: str,
    tokens: float,
    seed: float | None,
    chat: bool,
) -> TextRequest:
    if not (model or "").strip():
        raise OptionError("no model is chosen: give a name, a folder or a .gguf file")
    seed = seed or 0
    if seed != int(seed) or seed < 0:
        raise OptionError(f"seed: {seed:g}; must be a whole number from 0")
    return TextRequest(str(model).strip(), spec, prompt or "", int(tokens), int(seed), chat)


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
