"""Puts this folder on the import path, so that tests share `chat_server`."""

from hypothesis import settings

# How long one example takes says more of the machine than of the code.
settings.register_profile("house", deadline=None)
settings.load_profile("house")
