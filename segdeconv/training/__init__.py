"""Training and evaluation with Lightning; the only room of the library that knows it.

`command_line` says what it can before torch is loaded, `cli` parses a config, `mistakes` reports a
user's mistake in one sentence, `run` puts a run together: `task` is the network with its loss and
metric, `data_module` the data and `loading` its order, `optimization` the optimiser and its
schedule, `callbacks` what happens around a step, `recording` what is kept, `run_folder` where.
`evaluation` and `prediction` use a run.
"""
