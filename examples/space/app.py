"""The page of ``decoding play`` as a hosted Space: the embedded models alone, and shorter texts."""

from decoding.play.page import build_page, launch_settings
from decoding.play.playground import Playground
from decoding.play.requests import Limits

limits = Limits(prompt=4_000, new_tokens=200, waiting=20, only_named_models=True)
playground = Playground(("expert", "amateur"), limits)
demo = build_page(playground)

if __name__ == "__main__":
    playground.load_first()
    demo.launch(**launch_settings())
