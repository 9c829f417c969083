"""What the fork server has done before anybody forks from it: imports, and nothing that starts a thread."""

import gc

from sqlalchemy import create_engine

from tests.apps.transactions.crash import roles

create_engine("sqlite://").dispose()
create_engine("postgresql+psycopg://").dispose()
gc.freeze()  # or each child's first collection copies every page

__all__ = ["roles"]
