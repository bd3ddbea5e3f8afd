"""slm_ray: can a small fine-tuned model replace the large one you pay for, and can you act on the answer?

Importing this package imports nothing heavy: no Ray, torch, vLLM or network client.
"""

__version__ = "0.1.0"
