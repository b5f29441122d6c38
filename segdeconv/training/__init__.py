"""Training and evaluation with Lightning; the only room of the library that knows it.

`command_line` says what it can before torch is loaded, `cli` parses a config, `mistakes` reports a
user's mistake in one sentence, `run` puts a run together. `tasks` lists what a run can train:
`base_task` and `base_data` are common to all, `task` and `data_module` segment, `classification`
and `classification_data` classify. `loading` is the order of samples, `optimization` the optimiser
and its schedule, `callbacks` what happens around a step, `recording` what is kept, `run_folder`
where. `evaluation` and `prediction` use a run; `grid` trains many, `reproduction` those of the
paper.
"""
