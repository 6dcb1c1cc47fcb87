"""Triton's interpreter without its repeated patches of ``triton.language``, which take half of its time."""

from __future__ import annotations

import functools
import inspect
from typing import Any

__all__ = ["patch_once"]


def patch_once(interpreter: Any) -> None:
    """Let a device function use the language as its kernel's launch has patched it.

    The interpreter patches the language at each launch and undoes that afterwards, and patches it again at each call of
    a device function, which changes nothing but where the function knows the language as ``triton.language.core``, as
    those of triton's own library do. That patch stays, so once is enough.

    Args:
        interpreter: the module ``triton.runtime.interpreter``.
    """
    language = interpreter.tl
    patched = {language}

    @functools.cache
    def languages(function: Any) -> set[Any]:
        modules = filter(inspect.ismodule, function.__globals__.values())
        return {module for module in modules if module in (language, language.core)}

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not languages(self.fn) <= patched:
            interpreter._patch_lang(self.fn)
            patched.update(languages(self.fn))
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    interpreter.InterpretedFunction.__call__ = call
