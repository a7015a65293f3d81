"""Small chat templates in the style of four families, on the embedded model's tokenizer.

What transformers calls the assistant's part stands between ``generation`` marks, so that its own
mask of the tokens (``return_assistant_tokens_mask``) is a second opinion; the marks change no text.
"""

from transformers import AutoTokenizer

from zopeft.embedded import MODEL_DIR

CHATML = """\
{%- for m in messages %}
    {{- '<|im_start|>' + m['role'] + '\\n' }}
    {%- if m['role'] == 'assistant' %}
        {%- generation %}{{- m['content'] + '<|im_end|>' }}{%- endgeneration %}
    {%- else %}
        {{- m['content'] + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if m['role'] == 'assistant' %}
        {%- generation %}{{- m['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}
        {{- m['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

GEMMA = """\
{{- bos_token }}
{%- set before = '' %}
{%- set turns = messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set before = messages[0]['content'] + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- endif %}
{%- for m in turns %}
    {%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant') }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}
    {%- if loop.first %}{{- before }}{%- endif %}
    {%- if m['role'] == 'assistant' %}
        {%- generation %}{{- m['content'] | trim + '<end_of_turn>' }}{%- endgeneration %}
    {%- else %}
        {{- m['content'] | trim + '<end_of_turn>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

MISTRAL = """\
{{- bos_token }}
{%- set turns = messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set before = messages[0]['content'] + '\\n\\n' %}
    {%- set turns = messages[1:] %}
{%- endif %}
{%- for m in turns %}
    {%- if m['role'] == 'user' %}
        {{- '[INST]' }}
        {%- if loop.first and before is defined %}{{- before }}{%- endif %}
        {{- m['content'] + '[/INST]' }}
    {%- else %}
        {%- generation %}{{- ' ' + m['content'] | trim + eos_token }}{%- endgeneration %}
    {%- endif %}
{%- endfor %}"""

FAMILIES = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"]),
    "llama3": (LLAMA3, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>"]),
    "mistral": (MISTRAL, ["[INST]", "[/INST]"]),
}
"""Family to its template and the tokens that it needs."""
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}


def chat_tokenizer(family=None):
    """Returns the embedded model's tokenizer, with a family's template and tokens."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    if family is not None:
        template, tokens = FAMILIES[family]
        tokenizer.add_special_tokens({"extra_special_tokens": tokens})
        tokenizer.chat_template = template
    return tokenizer
