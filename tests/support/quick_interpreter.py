"""Triton's interpreter without work that changes nothing, which takes most of its time."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

__all__ = ["patch_once", "skip_what_nobody_reads"]


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


def skip_what_nobody_reads(interpreter: Any) -> None:
    """Leave out the arithmetic of assertions that are off, and look up the numpy type of a type once.

    Without ``debug``, which the interpreter never has, ``device_assert`` drops its condition. For sums, differences and
    products of small integers the condition, that they do not overflow, is computed before: a quarter of all the time.

    Args:
        interpreter: the module ``triton.runtime.interpreter``.
    """
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=builder.options.debug)
    look_up, known = interpreter._get_np_dtype, {}

    def numpy_type(tensor_type: Any) -> Any:
        name = tensor_type.scalar.name  # of a block: its elements' type
        if name not in known:
            known[name] = look_up(tensor_type)
        return known[name]

    interpreter._get_np_dtype = numpy_type
