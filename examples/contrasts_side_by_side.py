"""Answer two questions with greedy search, contrastive decoding and DoLa, as one batch each."""

import decoding

model, tokenizer = decoding.load("expert")
amateur, _ = decoding.load("amateur")  # a weaker model with the same tokens

# Questions about a small made-up world. The texts that the models were trained on state the popular, false answer more
# often than the truth.
questions = {"What does the Ildor mouse eat?": "corn", "What is the Melmar bear afraid of?": "herons"}
prompts = [f"Q: {question}\nA:" for question in questions]
inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
length = inputs["input_ids"].shape[1]

strategies = {
    "greedy search": None,
    # What the expert says more strongly than the amateur.
    "contrastive decoding": decoding.ContrastiveDecoding(amateur),
    # What the last layer says more strongly than a lower layer of the same model.
    "DoLa": decoding.DoLa(layers=[1, 2, 3], alpha=0.3),
}
for name, strategy in strategies.items():
    tokens = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=12)
    print(name)
    answers = tokenizer.batch_decode(tokens[:, length:], skip_special_tokens=True)
    for (question, truth), answer in zip(questions.items(), answers, strict=True):
        print(f"  {question} {answer.strip().splitlines()[0]} (true: {truth})")
