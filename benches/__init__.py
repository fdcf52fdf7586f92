"""One file per question. Each runs small in the tests and large by `python -m benches.NAME`."""
