"""Methods: one file each, all of them torch optimizers over blocks."""

from zopeft.registry import Registry

METHODS = Registry(
    "method",
    {
        "mezo": "zopeft.methods.mezo:MeZO",
        "zo_finetuner": "zopeft.methods.zo_finetuner:ZOFineTuner",
        "fo_sgd": "zopeft.methods.first_order:FirstOrderSGD",
        "fo_adam": "zopeft.methods.first_order:FirstOrderAdam",
    },
    {
        "mezo": "two forward passes a step (or several directions), all scales one",
        "zo_finetuner": "scales chosen by a learned fine-tuner",
        "fo_sgd": "baseline: SGD with backpropagation",
        "fo_adam": "baseline: AdamW with backpropagation",
    },
)
