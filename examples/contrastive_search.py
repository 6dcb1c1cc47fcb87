"""Continue a prompt with greedy search and with contrastive search, and see how much each repeats itself."""

import decoding
from decoding.evals.metrics import repetition

model, tokenizer = decoding.load("expert")  # an embedded model; a model folder or a hub name works too
prompt = "Nobody in the valley knew why"
inputs = tokenizer(prompt, return_tensors="pt")

# Greedy search takes the most probable token, which soon is one that it took before.
greedy = model.generate(**inputs, do_sample=False, max_new_tokens=80)

# Contrastive search weighs the probability of the top_k tokens against how much each repeats the text so far:
# (1 - penalty_alpha) * probability - penalty_alpha * similarity.
searched = decoding.generate(model, **inputs, penalty_alpha=0.4, top_k=4, max_new_tokens=80)

length = inputs["input_ids"].shape[1]
for name, tokens in ("greedy search", greedy), ("contrastive search", searched):
    text = tokenizer.decode(tokens[0, length:], skip_special_tokens=True)
    print(f"{name} ({repetition([text], 2):.0f}% of its word pairs are repeated)\n{prompt}{text}\n")

# The same strategy as an object: for custom_generate, exporting, scoring, and all its options.
strategy = decoding.ContrastiveSearch(penalty_alpha=0.4, top_k=4)
assert model.generate(**inputs, custom_generate=strategy, max_new_tokens=80).equal(searched)
