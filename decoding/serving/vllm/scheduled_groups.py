"""Groups as the scheduler has them: a request, and the followers that read beside it."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.v1.core.kv_cache_utils import KVCacheBlockCopy
from vllm.v1.request import Request, RequestStatus

from decoding.errors import OptionError
from decoding.serving.vllm.readers import EngineReaders
from decoding.serving.vllm.requests import GROUP, ContrastiveSearchRequest
from decoding.serving.vllm.second_prompts import second_prompt

__all__ = ["Group", "GroupedRequest", "check_room", "group_led_by", "group_of"]

AMATEUR_ADAPTER = 1  # its number among vLLM's adapters


class GroupedRequest(Request):
    """A request of a group. While it is held, its last token seems not to be there, so that it is not read.

    Attributes:
        held: whether it waits before its last token.
        ahead: whether its last token is a candidate, which is not of the text.
        cached_tokens: the most tokens that the prefix cache may have of it; None for all.
    """

    held = False
    ahead = False
    cached_tokens: int | None = None

    @property
    def num_tokens(self) -> int:
        """The number of tokens, without the last one while it is held."""
        return super().num_tokens - self.held

    @property
    def num_tokens_with_spec(self) -> int:
        """Likewise with drafts, which groups do not have."""
        return super().num_tokens_with_spec - self.held

    @property
    def unread(self) -> int:
        """The number of tokens to read, the last one included."""
        return super().num_tokens - self.num_computed_tokens

    @property
    def is_running(self) -> bool:
        """Whether it has blocks."""
        return self.status == RequestStatus.RUNNING

    @property
    def is_of_one_token(self) -> bool:
        """Whether it waits, and its only token is its last one."""
        return not self.is_running and super().num_tokens == 1

    @property
    def may_step(self) -> bool:
        """Whether it has read all but its last token."""
        return (self.is_running and self.unread == 1) or self.is_of_one_token


@dataclass
class Group:
    """A request and its followers.

    Attributes:
        leader: answers the client.
        followers: its second reading, or those of its candidates.
        searches: whether followers have candidates.
        chosen: the follower whose candidate was chosen last, and has not been given to the others yet.
        is_in: whether its requests run, or wait in vLLM's queue to run. A group enters where all of it has room.
    """

    leader: GroupedRequest
    followers: list[GroupedRequest]
    searches: bool
    chosen: GroupedRequest | None = None
    is_in: bool = False

    def __iter__(self) -> Iterator[GroupedRequest]:
        return iter([self.leader, *self.followers])

    def keep_candidates(self, living: Container[str], chosen: bool) -> None:
        """After a step of a search: followers have new candidates; their last ones gave way to the token chosen.

        Args:
            living: ids of the requests that go on.
            chosen: whether the leader has chosen a token in the step.
        """
        for follower in self.followers:
            if follower.request_id not in living:
                continue
            if chosen:  # [..., candidate, new candidate]
                token = self.leader.all_token_ids[-1]
                if follower.all_token_ids[-2] == token:
                    self.chosen = follower
                follower._all_token_ids[-2] = follower._output_token_ids[-2] = token
            follower.ahead = True

    def chosen_copies(self, cache: Any, block_size: int) -> list[KVCacheBlockCopy]:
        """The copies of the block with the chosen candidate to the other followers, which are to read on with it.

        Args:
            cache: the scheduler's manager of the cache.
            block_size: tokens of a block.
        """
        source, self.chosen = self.chosen, None
        if source is None:
            return []
        at = (source.num_computed_tokens - 1) // block_size
        sources = [ids[at] for ids in cache.get_block_ids(source.request_id)]
        copies: list[KVCacheBlockCopy] = []
        for follower in self.followers:
            if follower is not source:
                blocks = [ids[at] for ids in cache.get_block_ids(follower.request_id)]
                copies += map(KVCacheBlockCopy, sources, blocks)
        return copies

    def next_step(self) -> list[GroupedRequest]:
        """The requests that may take a step together now; none where one of the group is not yet there."""
        if not all(request.may_step for request in self):
            return []
        if self.searches and not self.followers[0].ahead:
            return self.followers  # they find the first candidates
        return list(self)


def check_room(largest: int, longest: int, block_size: int, blocks: int, seats: int) -> None:
    """Refuse an engine that cannot hold a group, which might then wait for ever.

    Args:
        largest: the number of requests in a group.
        longest: the number of tokens in a text.
        block_size: tokens of a block.
        blocks: of the cache.
        seats: the most requests that run.

    Raises:
        OptionError: says what is missing.
    """
    needed = largest * -(-longest // block_size)
    if needed > blocks:
        raise OptionError(
            f"a group of {largest} requests of {longest} tokens each needs {needed} blocks of the cache, which has "
            f"{blocks}; give it more memory, or set max_model_len to at most {blocks // largest * block_size}"
        )
    if seats < largest:
        raise OptionError(f"a group takes {largest} of max_num_seqs, which is {seats}; must be at least {largest}")


def group_led_by(leader: Request, wanted: Any, readers: EngineReaders, model_config: Any) -> Group:
    """Make a group of a request, with the followers that its strategy asks for.

    Args:
        leader: the client's request, which becomes a :class:`GroupedRequest`.
        wanted: its strategy, which has followers.
        readers: of the engine.
        model_config: vLLM's, of the model.
    """
    prompts = [list(leader.prompt_token_ids)] * wanted.followers(readers)
    if wanted.reads_second_prompt:
        prompts = [second_prompt(wanted, leader.prompt_token_ids, model_config)]
    searches = isinstance(wanted, ContrastiveSearchRequest)
    # The group ends where the longest of its texts fills the context.
    room = model_config.max_model_len - max(map(len, prompts)) - int(searches)
    leader.max_tokens = max(1, min(leader.max_tokens, room))
    followers = []
    for number, prompt in enumerate(prompts, 1):
        params = in_group(leader.sampling_params, leader.request_id, number, len(prompt))
        params.max_tokens, params.min_tokens, params.seed = model_config.max_model_len, 0, None
        params.stop_token_ids, params._eos_token_id = [], None
        params.logprobs = params.prompt_logprobs = params.structured_outputs = None
        lora = leader.lora_request
        if wanted.needs_amateur and readers.adapter:
            lora = LoRARequest("amateur", AMATEUR_ADAPTER, readers.amateur)
        follower = GroupedRequest(
            f"{leader.request_id}-follower-{number}", prompt, params, None, client_index=leader.client_index,
            arrival_time=leader.arrival_time, lora_request=lora, cache_salt=leader.cache_salt,
            priority=leader.priority, block_hasher=leader._block_hasher,
        )  # fmt: skip
        if searches:  # what it reads after the prompt are candidates
            follower._block_hasher, follower.cached_tokens = None, len(prompt)
        followers.append(follower)
    leader.sampling_params = in_group(leader.sampling_params, leader.request_id, 0, leader.num_prompt_tokens)
    leader.__class__ = GroupedRequest
    return Group(leader, followers, searches)


def group_of(stepping: Sequence[GroupedRequest]) -> str:
    """The group of requests that take a step together."""
    return stepping[-1].sampling_params.extra_args[GROUP][0]


def in_group(params: Any, group: str, number: int, prompt_length: int) -> Any:
    """A copy of a request's parameters that tells the sampler's processor its group, and its number in it."""
    params = params.clone()
    params.extra_args = {**params.extra_args, GROUP: [group, number, prompt_length]}
    return params
