"""The tests see no token and no model that Hugging Face's own tools keep on this machine."""

import os
import tempfile

os.environ["HF_HOME"] = os.path.join(tempfile.gettempdir(), "llamadeck-tests", "huggingface")
for _name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH"):
    os.environ.pop(_name, None)
