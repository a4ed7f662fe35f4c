"""The servers that taskflow is compared with. See `bench/serving.py`."""
