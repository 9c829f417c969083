"""The filter in plain Python that everything.yaml names."""

from sidecar.filtering import Filter


class Sample(Filter):
    """Does nothing."""
