"""``decoding play``: strategies side by side in a browser. All but ``page.py`` is plain Python and knows no gradio."""
