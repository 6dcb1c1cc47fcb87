"""Contrastive search by hand: what a stream does, and what a strategy does with it."""

import torch
from torch.nn.functional import cosine_similarity

import decoding

model, tokenizer = decoding.load("expert")
inputs = tokenizer("Long ago a stubborn gardener", return_tensors="pt")

# A stream is a model with the text that it has read, and its cache. Opening it reads the prompt.
stream = decoding.open_stream(model, **inputs)
prompt_length = stream.length
output, history = stream.prompt, stream.prompt.hidden  # history: (1, tokens so far, dim)

for _ in range(30):
    # Read the four most probable tokens as four branches, in one forward pass. None of them is kept yet.
    probabilities, candidates = stream.logits(output).softmax(-1).topk(4)  # (1, 4) each
    branches = stream.branch(candidates)  # branches.hidden: (1, 4, 1, dim)
    # A candidate that repeats the text has a hidden state like one that was there before.
    similarity = cosine_similarity(branches.hidden, history[:, None], dim=-1)  # (1, 4, tokens so far)
    best = (0.6 * probabilities - 0.4 * similarity.amax(-1)).argmax(-1)  # (1,)
    # Keep one branch of each row and drop the others.
    output = stream.commit(best)
    history = torch.cat([history, output.hidden], dim=1)

by_hand = stream.input_ids
print(tokenizer.decode(by_hand[0]))

# Nothing else happens in decoding.generate, for batches, padding, sampling and models of every kind.
strategy = decoding.ContrastiveSearch(penalty_alpha=0.4, top_k=4)
assert decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=30).equal(by_hand)

# Back to the prompt, and on with other words.
stream.rewind(prompt_length)
output = stream.extend(tokenizer(" walked to the", add_special_tokens=False, return_tensors="pt")["input_ids"])
likely = stream.logits(output).topk(3).indices[0]
print("Long ago a stubborn gardener walked to the ...", [tokenizer.decode(token) for token in likely])
