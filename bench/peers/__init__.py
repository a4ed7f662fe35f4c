"""The servers that taskflow is compared with; see `bench/serving.py`."""
