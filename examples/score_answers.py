"""Score given answers to a question, with the model alone and with a contrast, as evaluations of multiple choice do."""

import decoding

model, tokenizer = decoding.load("expert")
prompt = "Q: What does the Fermar bear eat?\nA:"
answers = [" The Fermar bear eats ants.", " The Fermar bear eats honey."]

# An adapter that makes the model hallucinate is an amateur too. It shares the model's weights and its forward pass.
strategy = decoding.ContrastiveDecoding("induced", form="log_probs", beta=1.0)

for name, scored_by in ("the model alone", None), ("contrastive decoding", strategy):
    print(name)
    scores = decoding.score(model, prompt, answers, scored_by, tokenizer=tokenizer)  # one tensor of scores per answer
    for answer, tokens in zip(answers, scores, strict=True):
        print(f"  {tokens.sum():8.2f} over {len(tokens)} tokens: {answer.strip()}")

# Many questions, several strategies: a Scorer reads a common prompt once, and what the strategies share once.
with decoding.Scorer(model, tokenizer("Q: What")["input_ids"], [None, strategy]) as scorer:
    question = tokenizer(" does the Fermar bear eat?\nA:")["input_ids"]
    alone, contrasted = scorer.score([(question, [tokenizer(answer)["input_ids"] for answer in answers])])[0]
    print("by a Scorer:", [f"{scores.normalized.sum():.2f}" for scores in contrasted])
