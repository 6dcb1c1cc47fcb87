"""vLLM's OpenAI server with strategies, in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence

from decoding.errors import OptionError
from decoding.serving.vllm.engine import Engine, plain_errors
from decoding.serving.vllm.requests import PLAIN, STRATEGY

__all__ = ["arguments_of", "run_server", "usage"]

OWN = ("--model", "--hf-overrides", "--additional-config", "--host", "--port")  # arguments that are made here


def arguments_of(engine: Engine, name: str, host: str, port: int, more: Sequence[str]) -> list[str]:
    """The arguments of vLLM's server.

    Args:
        engine: its options.
        name: of the model, in requests.
        host: address that it listens at.
        port: likewise.
        more: arguments of vLLM's own.

    Raises:
        OptionError: one of ``more`` is made here.
    """
    for argument in more:
        if (option := argument.partition("=")[0].replace("_", "-")) in OWN:
            raise OptionError(f"{option}: is written by decoding serve; give it before --, or leave it out")
    needs: list[str] = []
    for option, value in engine.needs.items():
        needs += [f"--{option.replace('_', '-')}", *([] if value is True else [str(value)])]
    return [
        "--model", engine.model, "--served-model-name", name, "--host", host, "--port", str(port),
        "--hf-overrides", json.dumps(dict(engine.hf_overrides)),
        "--additional-config", json.dumps(dict(engine.additional_config)),
        *needs, *more,
    ]  # fmt: skip


def usage(engine: Engine, name: str, host: str, port: int) -> str:
    """What clients may ask for: the fields of a request, with a line of curl and one of OpenAI's client."""
    default = engine.settings.default
    lines = [
        f"Requests to http://{host}:{port}/v1 may have these fields in vllm_xargs; without them they get "
        f"{'the model itself' if default is None else default.name}:"
    ]
    served = [{STRATEGY: strategy, **parameters} for strategy, parameters in engine.served.items()]
    served.append({STRATEGY: PLAIN})
    lines += [f"  {json.dumps(fields)}" for fields in served]
    body = {"model": name, "prompt": "The old clockmaker", "max_tokens": 64, "temperature": 0, "vllm_xargs": served[0]}
    lines += [
        f"curl http://{host}:{port}/v1/completions -H 'Content-Type: application/json' -d '{json.dumps(body)}'",
        f'client = openai.OpenAI(base_url="http://{host}:{port}/v1", api_key="none")',
        f'client.completions.create(model="{name}", prompt="The old clockmaker", max_tokens=64, temperature=0, '
        f"extra_body={{'vllm_xargs': {served[0]}}})",
    ]
    return "\n".join(lines)


def run_server(arguments: Sequence[str]) -> None:
    """Run vLLM's OpenAI server until it is stopped.

    Args:
        arguments: of its command line.

    Raises:
        DecodingError: what the engine's settings get wrong, before it loads weights.
    """
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server as run
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    parsed = make_arg_parser(FlexibleArgumentParser(prog="decoding serve --")).parse_args(list(arguments))
    validate_parsed_serve_args(parsed)
    with plain_errors():
        uvloop.run(run(parsed))
