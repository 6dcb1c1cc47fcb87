"""vLLM's scheduler with groups: a request whose strategy needs more than one reading leads others beside itself.

- A second prompt: one follower has the other prompt, and reads the tokens that are chosen.
- An amateur that is a LoRA adapter: one follower has the same prompt, and the adapter.
- Contrastive search: k followers have the same prompt. Each reads one candidate for the next token in every step; their
  hidden states decide which of them the leader takes, and the others get the block that it was written to.

Each request of a group reaches the last token of its prompt for itself, in chunks and from the prefix cache as vLLM
sees fit, and waits there; then they take every step together, so that the sampler has all readings. Followers answer no
client: they end with the leader, and it ends with them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.v1.core.kv_cache_utils import KVCacheBlockCopy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus

from decoding.errors import OptionError
from decoding.serving.vllm.admission import fields_of
from decoding.serving.vllm.requests import GROUP, ContrastiveSearchRequest, SecondPromptRequest, requested
from decoding.serving.vllm.second_prompts import second_prompt
from decoding.serving.vllm.settings import readers_of

__all__ = ["GroupScheduler"]

logger = init_logger(__name__)

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

    def next_step(self) -> list[GroupedRequest]:
        """The requests that may take a step together now; none where one of the group is not yet there."""
        if not all(request.may_step for request in self):
            return []
        if self.searches and not self.followers[0].ahead:
            return self.followers  # they find the first candidates
        return list(self)


class GroupScheduler(Scheduler):
    """vLLM's scheduler, with groups. Requests that need one reading are scheduled as ever.

    Raises:
        OptionError: the cache cannot hold a group of the greatest length, which might then wait for ever.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.running: list[Request]
        self._groups: dict[str, Group] = {}  # by the leader's id
        self._leaders: dict[str, str] = {}  # the leader's id by the follower's
        self._settings, self._amateur_config = readers_of(self.vllm_config)
        self._readers = self._settings.readers
        self._stepping: list[list[GroupedRequest]] = []  # requests that take this step together
        self._failed: list[Request] = []  # have ended with an error, which their clients are not told yet
        self._unreadable: list[str] = []  # requests whose prompts the amateur cannot read
        self._crowded = False  # whether a request of a group has lost its blocks, or found none, since the last step
        largest = 1 + self._readers.followers
        blocks = -(-self.max_model_len // self.block_size)
        available = self.kv_cache_config.num_blocks - 1  # one block is never used
        if largest * blocks > available:
            raise OptionError(
                f"a group of {largest} requests of {self.max_model_len} tokens each needs {largest * blocks} blocks of "
                f"the cache, which has {available}; give it more memory, or set max_model_len to at most "
                f"{available // largest * self.block_size}"
            )
        if self.max_num_running_reqs < largest:
            raise OptionError(
                f"a group takes {largest} of max_num_seqs, which is {self.max_num_running_reqs}; must be at least "
                f"{largest}"
            )
        coordinator = self.kv_cache_manager.coordinator
        cache_blocks = coordinator.cache_blocks

        def cache_text(request: Request, num_tokens: int) -> None:
            limit = getattr(request, "cached_tokens", None)
            cache_blocks(request, num_tokens if limit is None else min(num_tokens, limit))

        coordinator.cache_blocks = cache_text

    def add_request(self, request: Request) -> None:
        """Add a request, and its followers where its strategy has some."""
        fields = None if request.sampling_params is None else fields_of(request.sampling_params)
        wanted = None if fields is None or request.request_id in self.requests else requested(fields, self._readers)
        if wanted is None or not wanted.followers(self._readers):
            super().add_request(request)
            if self._lacks_tokens(self._settings.default if fields is None else wanted, request):
                self._unreadable.append(request.request_id)
            return
        prompts = [list(request.prompt_token_ids)] * wanted.followers(self._readers)
        if isinstance(wanted, SecondPromptRequest):
            prompts = [second_prompt(wanted, request.prompt_token_ids, self.vllm_config.model_config)]
        searches = isinstance(wanted, ContrastiveSearchRequest)
        # The group ends where the longest of its texts fills the context.
        room = self.max_model_len - max(map(len, prompts)) - int(searches)
        request.max_tokens = max(1, min(request.max_tokens, room))
        followers = [self._follower(request, i, prompt, wanted) for i, prompt in enumerate(prompts, 1)]
        request.sampling_params = in_group(request.sampling_params, request.request_id, 0, request.num_prompt_tokens)
        for member in (request, *followers):
            member.__class__ = GroupedRequest
        self._groups[request.request_id] = Group(request, followers, searches)
        for follower in followers:
            self._leaders[follower.request_id] = request.request_id
        for member in (request, *followers):
            super().add_request(member)
            self.waiting.remove_request(member)

    def _lacks_tokens(self, wanted: Any, request: Request) -> bool:
        """Whether a request is contrasted with an amateur that does not have one of its prompt's tokens."""
        if wanted is None or not wanted.needs_amateur or self._amateur_config is None:
            return False
        foreign = [token for token in request.prompt_token_ids or () if token >= self._amateur_config.vocab_size]
        if foreign:
            logger.error(
                "%s: request %s ends: its prompt has token %d, which the amateur's vocabulary of %d does not have.",
                wanted.name, request.request_id, foreign[0], self._amateur_config.vocab_size,
            )  # fmt: skip
        return bool(foreign)

    def _follower(self, leader: Request, number: int, prompt: list[int], wanted: Any) -> Request:
        lora = leader.lora_request
        if wanted.needs_amateur:
            lora = LoRARequest("amateur", AMATEUR_ADAPTER, self._readers.amateur)
        params = in_group(leader.sampling_params, leader.request_id, number, len(prompt))
        params.max_tokens, params.min_tokens, params.seed = self.max_model_len, 0, None
        params.stop_token_ids, params._eos_token_id = [], None
        params.logprobs = params.prompt_logprobs = params.structured_outputs = None
        follower = Request(
            f"{leader.request_id}-follower-{number}", prompt, params, None, client_index=leader.client_index,
            arrival_time=leader.arrival_time, lora_request=lora, cache_salt=leader.cache_salt,
            priority=leader.priority, block_hasher=leader._block_hasher,
        )  # fmt: skip
        if isinstance(wanted, ContrastiveSearchRequest):  # what it reads after the prompt are candidates
            follower._block_hasher, follower.cached_tokens = None, len(prompt)
        return follower

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule a step: the groups that may step come first, the others stop before their last token."""
        self._failed += [self.requests[request_id] for request_id in self._unreadable if request_id in self.requests]
        super().finish_requests(self._unreadable, RequestStatus.FINISHED_ERROR)
        self._unreadable.clear()
        self._let_in()
        inside = [group for group in self._groups.values() if group.is_in]
        self._stepping, tokens = [], 0
        for group in inside:
            stepping = group.next_step()
            if tokens + len(stepping) > self.max_num_scheduled_tokens:
                stepping = []
            for request in group:
                request.held = request not in stepping
                if request.is_of_one_token:  # it has nothing to read before its last token: it waits outside the queue
                    if request in self.waiting:
                        self.waiting.remove_request(request)
                    if not request.held:
                        self.waiting.prepend_request(request)
            if stepping:
                tokens += len(stepping)
                self._stepping.append(stepping)
        if inside:  # the last ones are preempted first
            first = [request for group in inside for request in group if request.is_running]
            chosen = set(first)
            self.running = first + [request for request in self.running if request not in chosen]
        output = super().schedule(*args, **kwargs)
        if inside and output.total_num_scheduled_tokens == 0:
            self._crowded = True
        return output

    def _let_in(self) -> None:
        """Put the youngest group out after a step in which one had no room; let the oldest in where there is room.

        The oldest group stays in: it gets all blocks at last, and so each group comes to its end.
        """
        inside = [group for group in self._groups.values() if group.is_in]
        if self._crowded and len(inside) > 1:
            youngest = inside.pop()
            youngest.is_in = False
            for request in youngest:
                if request.is_running:
                    self.running.remove(request)
                    self._preempt_request(request, time.monotonic())
                if request in self.waiting:
                    self.waiting.remove_request(request)
        elif not self._crowded or not inside:
            seats = self.max_num_running_reqs - sum(len(list(group)) for group in inside)
            # Each request that is in may soon want one block more.
            blocks = self.kv_cache_manager.block_pool.get_num_free_blocks() - sum(len(list(group)) for group in inside)
            for group in self._groups.values():
                if group.is_in:
                    continue
                size = len(list(group))
                blocks -= sum(-(-(len(request.all_token_ids) + 1) // self.block_size) for request in group)
                seats -= size
                if inside and (blocks < 0 or seats < 0):
                    break
                group.is_in = True
                inside.append(group)
                for request in group:
                    self.waiting.add_request(request)
        self._crowded = False

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        """Take out what is scheduled of a group that has not found room for all its step, then release all."""
        scheduled = scheduler_output.num_scheduled_tokens
        for stepping in self._stepping:
            found_room = [request for request in stepping if request.request_id in scheduled]
            if len(found_room) < len(stepping):
                for request in found_room:
                    self._take_out(request, scheduler_output)
            else:
                self._copy_chosen(self._groups[group_of(stepping)], scheduler_output)
        for group in self._groups.values():
            for request in group:
                request.held = False
            if group.searches and not all(request.is_running for request in group if not request.is_of_one_token):
                self._forget_candidates(group)
        super()._update_after_schedule(scheduler_output)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Give followers the leader's tokens, and end groups as a whole."""
        sampled, at = model_runner_output.sampled_token_ids, model_runner_output.req_id_to_index
        stepped = []
        for stepping in self._stepping:
            group = self._groups.get(group_of(stepping))
            if group is None or any(request.request_id not in at for request in stepping):
                continue
            if group.searches:
                stepped.append((group, list(stepping)))
            elif sampled:
                sampled[at[group.followers[0].request_id]] = sampled[at[group.leader.request_id]]
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for group, stepping in stepped:
            self._keep_candidates(group, chosen=group.leader in stepping)
        self._end_groups()
        for leader in self._failed:
            of_leader = outputs.setdefault(leader.client_index, EngineCoreOutputs())
            of_leader.outputs.append(EngineCoreOutput(leader.request_id, [], finish_reason=FinishReason.ERROR))
        self._failed.clear()
        for of_client in outputs.values():
            of_client.outputs = [output for output in of_client.outputs if output.request_id not in self._leaders]
            if of_client.finished_requests:
                of_client.finished_requests -= self._leaders.keys()
        self._forget_groups()
        return outputs

    def finish_requests(self, request_ids: Any, finished_status: RequestStatus) -> Any:
        """Finish requests, and the rest of their groups."""
        finished = super().finish_requests(request_ids, finished_status)
        if self._groups:
            self._end_groups()
            self._forget_groups()
        return finished

    def get_request_counts(self) -> tuple[int, int]:
        """The numbers of requests that run and that wait, those of groups outside the queue included."""
        running, waiting = super().get_request_counts()
        return running, waiting + sum(len(list(group)) for group in self._groups.values() if not group.is_in)

    def _keep_candidates(self, group: Group, chosen: bool) -> None:
        """After a step of a search: followers have new candidates; their last ones gave way to the token chosen."""
        for follower in group.followers:
            if follower.request_id not in self.requests:
                continue
            if chosen:  # [..., candidate, new candidate]
                token = group.leader.all_token_ids[-1]
                if follower.all_token_ids[-2] == token:
                    group.chosen = follower
                follower._all_token_ids[-2] = follower._output_token_ids[-2] = token
            follower.ahead = True

    def _copy_chosen(self, group: Group, scheduler_output: Any) -> None:
        """Let the model runner copy the block with the chosen candidate to the other followers, before they read on."""
        source, group.chosen = group.chosen, None
        if source is None:
            return
        at = (source.num_computed_tokens - 1) // self.block_size
        copies = list(scheduler_output.kv_cache_block_copies or ())
        sources = [ids[at] for ids in self.kv_cache_manager.get_block_ids(source.request_id)]
        for follower in group.followers:
            if follower is not source:
                blocks = [ids[at] for ids in self.kv_cache_manager.get_block_ids(follower.request_id)]
                copies += map(KVCacheBlockCopy, sources, blocks)
        scheduler_output.kv_cache_block_copies = copies

    def _forget_candidates(self, group: Group) -> None:
        """Preempt the followers of a search that has lost one of its requests: they find candidates anew."""
        for follower in group.followers:
            if follower.is_running and follower.ahead:
                self.running.remove(follower)
                self._preempt_request(follower, time.monotonic())

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Preempt a request. A follower comes back as a new one, whose prompt is the text so far.

        The V1 runner would read again what it has drawn for the request itself.
        """
        super()._preempt_request(request, *args, **kwargs)
        self._crowded |= isinstance(request, GroupedRequest)
        if request.request_id in self._leaders:
            if request.ahead:
                del request._all_token_ids[-1]
            request.ahead = False
            request.prompt_token_ids = list(request.all_token_ids)
            request.num_prompt_tokens = len(request.prompt_token_ids)
            request._output_token_ids.clear()
            request.status = RequestStatus.WAITING
            self.finished_req_ids.add(request.request_id)

    def _end_groups(self) -> None:
        """End what is left of groups that have lost a request."""
        for leader_id, group in self._groups.items():
            left = [follower.request_id for follower in group.followers if follower.request_id in self.requests]
            if leader_id not in self.requests:
                super().finish_requests(left, RequestStatus.FINISHED_ABORTED)
            elif len(left) < len(group.followers):
                logger.error("A reading of request %s has ended, and so the request ends.", leader_id)
                self._failed.append(group.leader)
                super().finish_requests([leader_id, *left], RequestStatus.FINISHED_ERROR)

    def _forget_groups(self) -> None:
        for leader_id in [leader_id for leader_id in self._groups if leader_id not in self.requests]:
            for follower in self._groups.pop(leader_id).followers:
                del self._leaders[follower.request_id]

    def _take_out(self, request: GroupedRequest, scheduler_output: Any) -> None:
        """Preempt a request that this step has scheduled."""
        request_id = request.request_id
        tokens = scheduler_output.num_scheduled_tokens.pop(request_id)
        scheduler_output.total_num_scheduled_tokens -= tokens
        self.prev_step_scheduled_req_ids.discard(request_id)
        self.running.remove(request)
        # A block that this step's token fills is in the prefix cache already, and the token will not be read.
        filled = (request.num_computed_tokens + tokens) // self.block_size - 1
        of_groups = self.kv_cache_manager.get_block_ids(request_id)
        self.kv_cache_manager.evict_blocks({ids[filled] for ids in of_groups if 0 <= filled < len(ids)})
        self._preempt_request(request, time.monotonic())
        new = scheduler_output.scheduled_new_reqs
        entering = [data for data in new if data.req_id == request_id]
        if entering:
            new.remove(entering[0])
            request.num_preemptions -= 1
            if request.num_preemptions == 0:  # no model runner knows it
                request.status = RequestStatus.WAITING
                self.reset_preempted_req_ids.discard(request_id)
                self.finished_req_ids.discard(request_id)
            return
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


def group_of(stepping: Sequence[GroupedRequest]) -> str:
    """The group of requests that take a step together."""
    return stepping[-1].sampling_params.extra_args[GROUP][0]


def in_group(params: Any, group: str, number: int, prompt_length: int) -> Any:
    """A copy of a request's parameters that tells the sampler's processor its group, and its number in it."""
    params = params.clone()
    params.extra_args = {**params.extra_args, GROUP: [group, number, prompt_length]}
    return params
