"""A strategy of one's own: the last layer's logits, contrasted with those of one lower layer."""

from dataclasses import dataclass

import decoding
from decoding.kernels.contrast import contrast_logits
from decoding.strategies.contrast.base import Contrast, ContrastStrategy
from decoding.strategies.contrast.readers import EXPERT, Reader
from decoding.strategies.registry import parse_strategy


@decoding.register("layer-contrast")
@dataclass(frozen=True)
class LayerContrast(ContrastStrategy):
    """(1 + beta) * s_last - beta * s_layer, of the tokens whose probability is at least alpha times the largest."""

    layer: int = 2
    beta: float = 0.5
    alpha: float = 0.1

    def readers(self, model, rows):
        """One reader: the model itself, which also returns the logits of a lower layer."""
        return [Reader(EXPERT, exits=(self.layer,))]

    def contrast(self, logits, input_ids):
        """The same code serves one step (batch, vocab) and whole texts (batch, positions, vocab)."""
        last, lower = logits[EXPERT].final, logits[EXPERT].exits[0]
        return Contrast(lambda alpha: contrast_logits(last, lower, self.beta, alpha), lambda: last, self.alpha)


# Batches, padding, sampling, beams, streaming, scoring, exporting and a name on the command line come with the base.
# Whether it helps is another question: `decoding eval truthfulqa --miniature` measures it.
model, tokenizer = decoding.load("expert")
question = "Q: What is the Rosond mouse afraid of?\nA:"
strategy = parse_strategy("layer-contrast:layer=1,beta=0.3").strategy
tokens = decoding.generate(model, **tokenizer(question, return_tensors="pt"), strategy=strategy, max_new_tokens=10)
print(tokenizer.decode(tokens[0], skip_special_tokens=True))
scores = decoding.score(model, question, [" The Rosond mouse is afraid of nets."], strategy, tokenizer=tokenizer)
print(f"log-score of the true answer: {scores[0].sum():.2f}")
