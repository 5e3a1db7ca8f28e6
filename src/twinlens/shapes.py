"""Shape annotations: `Float[Tensor, "b p d"]` and its like, from jaxtyping.

Recordings are made in environments that belong to other implementations and hold nothing of ours
but torch and safetensors. There an annotation is only text, so a stand-in takes its place; where
jaxtyping is installed, as in the tests, annotations are checked.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Num, Shaped
else:
    try:
        from jaxtyping import Bool, Float, Int, Num, Shaped
    except ModuleNotFoundError:

        class Shaped:
            """Accepts any `Shaped[Tensor, "b p"]` and checks nothing."""

            def __class_getitem__(cls, item: object) -> Any:
                return Any

        Bool = Float = Int = Num = Shaped

__all__ = ["Bool", "Float", "Int", "Num", "Shaped"]
