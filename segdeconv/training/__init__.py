"""Training and evaluation with Lightning; the only room of the library that knows it.

`cli` parses a config and reports a user's mistake in one sentence, `task` is the network with its
loss and metric, `data_module` the loaders, `optimization` the optimiser and its schedule,
`callbacks` what happens around a step, `run_folder` what a run leaves on disk.
"""
