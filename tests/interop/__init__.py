"""gRPC's interop cases between implementations that are not ours."""

import pytest

pytest.register_assert_rewrite("tests.interop.python_peer")
