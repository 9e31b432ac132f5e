"""What transformers calls the cache that models take: `cache` from 5.24 on, `past_key_values` before."""

import inspect

from transformers import GenerationMixin

_parameters = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE_NAME = "cache" if "cache" in _parameters else "past_key_values"
