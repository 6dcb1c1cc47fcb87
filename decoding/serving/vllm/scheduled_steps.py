"""What vLLM's scheduler has put into a step."""

from __future__ import annotations

from typing import Any

__all__ = ["remove_scheduled"]


def remove_scheduled(scheduler_output: Any, request_id: str) -> bool:
    """Remove a request from a step, and tell whether the step was its first since it had no blocks.

    Args:
        scheduler_output: of a step that has it.
        request_id: the request's.
    """
    scheduler_output.total_num_scheduled_tokens -= scheduler_output.num_scheduled_tokens.pop(request_id)
    new = scheduler_output.scheduled_new_reqs
    entering = [data for data in new if data.req_id == request_id]
    if entering:
        new.remove(entering[0])
        return True
    cached = scheduler_output.scheduled_cached_reqs
    at = cached.req_ids.index(request_id)
    for values in (
        cached.req_ids, cached.new_token_ids, cached.new_block_ids, cached.num_computed_tokens,
        cached.num_output_tokens,
    ):  # fmt: skip
        if len(values) > at:
            del values[at]
    cached.resumed_req_ids.discard(request_id)
    cached.all_token_ids.pop(request_id, None)
    return False
