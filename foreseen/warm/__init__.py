"""Tables of rows → entries in the far tier: compute what is missing, or import what a batch run has computed.

The one thing that other people's programs (Ray, Airflow, a notebook) need is `Warmer`: small, picklable, synchronous.
"""

from foreseen.warm.plan import Plan
from foreseen.warm.run.resolve import plan_for
from foreseen.warm.run.warmer import Warmer

__all__ = ["Plan", "Warmer", "plan_for"]
