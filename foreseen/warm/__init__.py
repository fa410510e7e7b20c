"""Warms the cache from tables of rows: computes what is missing, or imports what a batch run has computed.

Programs that embed it (Ray, Airflow, a notebook) need `Warmer` only: small, picklable, synchronous.
"""

from foreseen.warm.plan import Plan
from foreseen.warm.run.resolve import plan_for
from foreseen.warm.run.warmer import Warmer

__all__ = ["Plan", "Warmer", "plan_for"]
