"""Task rows become examples: read, render, split, retrieve. Pure: text in, values out, no disk and no network."""
