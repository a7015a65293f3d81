"""Methods: one file each, all of them torch optimizers over blocks."""

from zopeft.registry import Registry

METHODS = Registry(
    "method",
    {
        "mezo": "zopeft.methods.mezo:MeZO",
        "zo_finetuner": "zopeft.methods.zo_finetuner:ZOFineTuner",
        "mezo_momentum": "zopeft.methods.mezo_momentum:MeZOMomentum",
        "mezo_adam": "zopeft.methods.mezo_adam:MeZOAdam",
        "r_adazo": "zopeft.methods.r_adazo:RAdaZO",
        "meazo": "zopeft.methods.meazo:MEAZO",
        "zo_sign": "zopeft.methods.zo_sign:ZOSign",
        "conservative": "zopeft.methods.conservative:Conservative",
        "fzoo": "zopeft.methods.fzoo:FZOO",
        "hizoo": "zopeft.methods.hizoo:HiZOO",
        "zo_adamu": "zopeft.methods.adamu:ZOAdaMU",
        "mezo_svrg": "zopeft.methods.mezo_svrg:MeZOSVRG",
        "lozo": "zopeft.methods.lozo:LOZO",
        "lozo_m": "zopeft.methods.lozo:LOZOM",
        "tezo": "zopeft.methods.tezo:TeZO",
        "tezo_adam": "zopeft.methods.tezo:TeZOAdam",
        "subzero": "zopeft.methods.subzero:SubZero",
        "subzero_plus": "zopeft.methods.subzero:SubZeroPlus",
        "zo_muon": "zopeft.methods.zo_muon:ZOMuon",
        "zo_mopi": "zopeft.methods.zo_muon:ZOMOPI",
        "lezo": "zopeft.methods.lezo:LeZO",
        "sparse_mezo": "zopeft.methods.sparse_mezo:SparseMeZO",
        "sensitive": "zopeft.methods.sensitive:Sensitive",
        "conmezo": "zopeft.methods.conmezo:ConMeZO",
        "ldsd": "zopeft.methods.ldsd:LDSD",
        "mezo_greedy": "zopeft.methods.pools:MeZOGreedy",
        "mezo_guided": "zopeft.methods.pools:MeZOGuided",
        "bszo": "zopeft.methods.bszo:BSZO",
        "dap": "zopeft.methods.dap:DAP",
        "kerzoo": "zopeft.methods.kerzoo:KerZOO",
        "qzo": "zopeft.methods.qzo:QZO",
        "agzo": "zopeft.methods.agzo:AGZO",
        "grzo": "zopeft.methods.grzo:GRZO",
        "loren": "zopeft.methods.loren:LOREN",
        "forward_gradient": "zopeft.methods.forward_gradient:ForwardGradient",
        "dizo": "zopeft.methods.dizo:DiZO",
        "fo_sgd": "zopeft.methods.first_order:FirstOrderSGD",
        "fo_adam": "zopeft.methods.first_order:FirstOrderAdam",
    },
    {
        "mezo": "two forward passes a step (or several directions), all scales one",
        "zo_finetuner": "scales chosen by a learned fine-tuner",
        "mezo_momentum": "momentum, as a mean or a heavy ball",
        "mezo_adam": "Adam on the estimate",
        "r_adazo": "Adam whose second moment is that of the first",
        "meazo": "over the running size of the projected gradient: one number",
        "zo_sign": "the sign of the estimate, or of the projected gradient",
        "conservative": "the best of staying, the step and its opposite",
        "fzoo": "one-sided directions over the spread of their losses",
        "hizoo": "noise and step over a running diagonal Hessian",
        "zo_adamu": "fresh and historical noise mixed",
        "mezo_svrg": "variance reduction by an anchor that is replayed",
        "lozo": "low rank, one factor kept for some steps",
        "lozo_m": "LOZO with momentum of its left factor",
        "tezo": "fixed factors for the run, new coordinates each step",
        "tezo_adam": "Adam on TeZO's coordinates",
        "subzero": "random orthonormal subspaces, renewed now and then",
        "subzero_plus": "Adam on many estimates in one subspace",
        "zo_muon": "an orthogonalised step in a subspace",
        "zo_mopi": "orthogonalised in part, with momentum",
        "lezo": "a random part of the layers each step",
        "sparse_mezo": "the small weights alone",
        "sensitive": "the few weights of a learned mask alone (SensZOQ)",
        "conmezo": "directions in a cone around a running mean",
        "ldsd": "candidates around a learned mean direction",
        "mezo_greedy": "the best direction of a pool",
        "mezo_guided": "the better half of a pool against the worse",
        "bszo": "a Kalman filter over a few directions",
        "dap": "directions aligned with a rough gradient",
        "kerzoo": "a random radius and a kernel against bias",
        "qzo": "the scales of a quantised base, clipped",
        "agzo": "directions within what the batch's activations span",
        "grzo": "one direction an example, in two forward passes",
        "loren": "noise shaped by a learned curvature of rank one",
        "forward_gradient": "the exact slope along a direction, by dual numbers",
        "dizo": "layers' distances from the start rescaled now and then",
        "fo_sgd": "baseline: SGD with backpropagation",
        "fo_adam": "baseline: AdamW with backpropagation",
    },
    "zopeft.methods",
)


def register_method(method: type, name: str | None = None, about: str = "") -> None:
    """Adds a method of your own: lists, recipes, the bench and the Trainer then know it by name.

    A package adds one for all its users by an entry point of the group ``zopeft.methods``.

    Args:
        method: A subclass of `zopeft.optim.zeroth_order.ZerothOrder` with a `plan`.
        name: The name it is known by; None for the class's own in small letters.
        about: A line for lists; "" for the first of its docstring.

    Raises:
        InputError: The name is taken, or it is no such class.
    """
    from zopeft.errors import input_error
    from zopeft.optim.zeroth_order import ZerothOrder

    if not (isinstance(method, type) and issubclass(method, ZerothOrder)):
        do = "subclass zopeft.optim.zeroth_order.ZerothOrder"
        raise input_error("register_method", "takes a class of methods", repr(method), do)
    first = (method.__doc__ or "").strip().partition("\n")[0]
    METHODS.register(name or method.__name__.lower(), method, about or first)
