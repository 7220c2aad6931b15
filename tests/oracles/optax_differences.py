"""Why tests of optax fail here: what is meant, and what only jax has. Read by `optax_suite.py`."""

REASONS = {  # why -> names of tests, or patterns of them
    "a state is dicts of tensors, no named tuples with optax's fields": [
        "AccumulationTest.test_ema_debias",
        "AccumulationTest.test_multi_steps_scan_dtype_stability",
        "AccumulationTest.test_multi_steps_skip_not_finite",
        "AliasTest.test_explicit_dtype(*, state_dtype=None, *",
        "BaseTest.test_set_to_zero_is_stateless",
        "CombiningTest.test_chain",
        "ComposeTest.test_chain",
        "ConditionalityTest.test_apply_if_finite_pmap",
        "ConditionalityTest.test_apply_if_finite_sgd",
        "ConditionalityTest.test_apply_if_finite_stateful_sgd",
        "ConditionallyMaskTest.test_statefull_inner",
        "ConditionallyTransformTest.test_statefull_inner",
        "ConstraintsTest.test_zero_nans",
        "FreezeTest.test_freeze_updates_*",
        "MaskedTest.test_masked_state_structure",
        "StatelessTest.test_init_returns_emptystate",
    ],
    "integers are refused by name": [
        "ClippingTest.test_per_example_global_norm_clip",
        "ExtraArgsTest.test_extra_args",
        "InjectHyperparamsTest.test_inject_hyperparams_starts_with_step_count_zero",
        "MaskedTest.test_tree_mismatch_fails(False, *",
    ],
    "complex numbers are refused by name": [
        "*(*, dtype=<class 'jax.numpy.complex*",
        "*(dtype=<class 'jax.numpy.complex*",
        "*(params_dtype='complex64'*",
        "ComplexValuedTest.*",
        "LBFGSTest.test_lbfgs_complex*",
    ],
    "updates have the structure of the parameters, and None only beside None": [
        "AddingTest.test_none_argument",
        "TransformTest.test_scale_by_polyak_l1_norm",
        "UpdateTest.test_none_argument_apply_updates",
    ],
    "errors have words of their own": [
        "FreezeTest.test_bad_structure_raises",
        "SelectiveTransformTest.test_selective_bad_structure",
    ],
    "a mask is of Python's bools, never read from an array": [
        "*_scalar_*_jax_bool",
    ],
    "weights are (outputs, inputs), as in torch": [
        "ClippingTest.test_adaptive_grad_clip",
    ],
    "a weight decay below 0 is refused, which optax's fromage has": [
        "*fromage*",
    ],
    "a weight decay that is a tensor, of 0 too, is a link and wants a whole tree as its mask": [
        "AliasTest.test_optimizers_can_be_wrapped_in_inject_hyperparams(opt_name='adadelta', *",
        "AliasTest.test_optimizers_can_be_wrapped_in_inject_hyperparams(opt_name='lamb', *",
        "AliasTest.test_optimizers_can_be_wrapped_in_inject_hyperparams(opt_name='lars', *",
    ],
    "a schedule of no length is refused, where optax's is constant": [
        "ExponentialTest.test_nonvalid_transition_steps(*",
        "PolynomialTest.test_zero_steps_schedule",
    ],
    "a rate of 0 decays to 0, where optax's is constant": [
        "ExponentialTest.test_nonvalid_decay_rate(*",
    ],
    "factors may be negative": [
        "PiecewiseInterpolateTest.test_invalid_scale",
    ],
    "a schedule ends at end_value, optax's at 0 where its peak is 0": [
        "WarmupCosineDecayTest.test_zero_peak_value",
    ],
    "optax's correction 1 - b2 ** t is off by 1.3e-5 in float32": [
        "TransformTest.test_rms_match_adam",
    ],
    "XLA takes a factor below 1e-38 for 0": [
        "TransformTest.test_scale",
    ],
    "jax takes no derivative of a callback": [
        "ProjectionsTest.test_projection_*_grad_at_zero",
        "ProjectionsTest.test_projection_simplex_jacobian",
    ],
    "`map_params` makes a state of no parameters, which have no mask": [
        "MaskedTest.test_masked_*sgd*",
    ],
    "a class that is registered with jax is no tree for torch": [
        "MaskedTest.test_mask_compatible_callable_pytree",
    ],
    "flax has an empty stand-in": [
        "AccumulationTest.test_multi_steps_mixed_precision(*",
    ],
}
