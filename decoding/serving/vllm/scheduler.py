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
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus

from decoding.serving.vllm.admission import fields_of
from decoding.serving.vllm.requests import requested
from decoding.serving.vllm.scheduled_groups import Group, GroupedRequest, check_room, group_led_by, group_of
from decoding.serving.vllm.scheduled_steps import remove_scheduled
from decoding.serving.vllm.settings import readers_of

__all__ = ["GroupScheduler"]

logger = init_logger(__name__)


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
        blocks = self.kv_cache_config.num_blocks - 1  # one block is never used
        check_room(1 + self._readers.followers, self.max_model_len, self.block_size, blocks, self.max_num_running_reqs)
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
        unreadable = self._lacks_tokens(self._settings.default if fields is None else wanted, request)
        if wanted is None or unreadable or not wanted.followers(self._readers):
            super().add_request(request)
            if unreadable:
                self._unreadable.append(request.request_id)
            return
        group = group_led_by(request, wanted, self._readers, self.vllm_config.model_config)
        self._groups[request.request_id] = group
        for follower in group.followers:
            self._leaders[follower.request_id] = request.request_id
        for member in group:
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
                copies = self._groups[group_of(stepping)].chosen_copies(self.kv_cache_manager, self.block_size)
                if copies:
                    known = scheduler_output.kv_cache_block_copies or ()
                    scheduler_output.kv_cache_block_copies = [*known, *copies]
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
            group.keep_candidates(self.requests, chosen=group.leader in stepping)
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
        tokens = scheduler_output.num_scheduled_tokens[request_id]
        self.prev_step_scheduled_req_ids.discard(request_id)
        self.running.remove(request)
        # A block that this step's token fills is in the prefix cache already, and the token will not be read.
        filled = (request.num_computed_tokens + tokens) // self.block_size - 1
        of_groups = self.kv_cache_manager.get_block_ids(request_id)
        self.kv_cache_manager.evict_blocks({ids[filled] for ids in of_groups if 0 <= filled < len(ids)})
        self._preempt_request(request, time.monotonic())
        if remove_scheduled(scheduler_output, request_id):
            request.num_preemptions -= 1
            if request.num_preemptions == 0:  # no model runner knows it
                request.status = RequestStatus.WAITING
                self.reset_preempted_req_ids.discard(request_id)
                self.finished_req_ids.discard(request_id)
