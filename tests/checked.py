"""The checker behind the shape annotations: what `float` and `Self` mean to it."""

from typing import Self

from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import Shaped
from torch import Tensor

# A number of an operation may be an int (scale=16), or a 0-dim tensor, so that torch.func.jvp gives
# its derivative; the declaration says `float`, which is what it means. `Self` has no meaning for a
# method that is decorated outside its class, as the import hook does.
MEANING = {float: float | int | Shaped[Tensor, ""], Self: object}
checked = beartype(conf=BeartypeConf(hint_overrides=FrozenDict(MEANING)))
ROOMS = ("model", "ops", "plan", "recording")
"""Where tensors have shapes in their annotations: to check what else is called costs the suite three times its time."""
