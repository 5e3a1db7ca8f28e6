"""Are two runs of one declared model the same, and if not, why."""

from twinlens.parity.judge import Judge, Progress, judge
from twinlens.parity.result import Cause, Finding, Order, Result, Unexplained

__all__ = ["Cause", "Finding", "Judge", "Order", "Progress", "Result", "Unexplained", "judge"]
