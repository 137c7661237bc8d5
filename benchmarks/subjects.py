"""Running one subject of a measure: what it cannot do goes into the table, not up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyktls

from .tables import Missing

if TYPE_CHECKING:
    from collections.abc import Callable

    from .material import Setting
    from .tables import Table


def attempt(setting: Setting, name: str, tables: list[Table], work: Callable[[], None]) -> None:
    """Do ``work`` for the row ``name`` of the tables; a reason stands where it does not go."""
    setting.say(f"  {name}")
    try:
        work()
    except (Missing, pyktls.Unavailable) as e:
        reason = str(e)
    except Exception as e:  # noqa: BLE001  (the other subjects are measured all the same)
        reason = "failed"
        setting.failures.append(f"{tables[0].key}: {name}: {e}")
        setting.say(f"  {name} FAILED: {e}")
    else:
        reason = "not measured"
    for table in tables:
        table.miss(name, reason)
