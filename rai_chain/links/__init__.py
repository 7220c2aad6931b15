"""The vocabulary: transforms, projections, Frank-Wolfe, optimizers, wrappers, schedules."""
