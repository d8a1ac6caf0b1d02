"""Chat templates in the formats of released families, with the Jinja that theirs use, and a tokenizer for them."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_LOOP = "{%- for message in messages %}"
_ALTERNATE = (
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate: user, assistant, user, ...') }}"
    "{%- endif %}"
)
_SYSTEM_APART = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- endif %}"
)

FAMILIES = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama2": (
        _SYSTEM_APART + _LOOP + _ALTERNATE + "{%- if loop.first and system %}"
        "{%- set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}"
        "{%- else %}{%- set content = message['content'] %}{%- endif %}"
        "{%- if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{%- else %}{{ ' ' + content.strip() + ' ' + eos_token }}{%- endif %}"
        "{%- endfor %}"
    ),
    "llama3": (
        "{{- bos_token }}{%- set today = strftime_now('%d %b %Y') if strftime_now is defined else '' %}"
        + _SYSTEM_APART
        + "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + today + '\n\n' + system + '<|eot_id|>' }}"
        + _LOOP
        + "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim"
        " + '<|eot_id|>' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
    ),
    "mistral": (
        "{{- bos_token }}" + _SYSTEM_APART + _LOOP + _ALTERNATE + "{%- if message['role'] == 'user' %}"
        "{{- '[INST] ' + (system + '\n\n' if loop.last and system else '') + message['content'] + '[/INST]' }}"
        "{%- else %}{{- ' ' + message['content'] | trim + eos_token }}{%- endif %}"
        "{%- endfor %}"
    ),
    "zephyr": (
        "{% for message in messages %}\n"
        "{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n"
        "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
        "{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n"
        "{{ '<|assistant|>' }}\n"
        "{% endif %}\n"
        "{% endfor %}"
    ),
    "vicuna": (
        _SYSTEM_APART
        + "{{- bos_token + (system or 'A chat between a user and an assistant.') + ' ' }}"
        + _LOOP
        + _ALTERNATE
        + "{%- if message['role'] == 'user' %}{{- 'USER: ' + message['content'].strip() + ' ' }}"
        "{%- else %}{{- 'ASSISTANT: ' + message['content'].strip() + eos_token + '\n' }}{%- endif %}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}"
    ),
    "alpaca": (
        _SYSTEM_APART
        + "{{- system or 'Below is an instruction. Write a response.' }}{{- '\n\n' }}"
        + _LOOP
        + "{%- if message['role'] == 'user' %}{{- '### Instruction:\n' + message['content'].strip() + '\n\n' }}"
        "{%- else %}{{- '### Response:\n' + message['content'].strip() + '\n\n' }}{%- endif %}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '### Response:\n' }}{%- endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
        "{% for message in messages %}" + _ALTERNATE + "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
        "{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "qwen3": (
        "{%- set ns = namespace(last_query=messages|length - 1, searching=true) %}"
        "{%- for message in messages[::-1] %}"
        "{%- if ns.searching and message.role == 'user' %}"
        "{%- set ns.searching = false %}{%- set ns.last_query = messages|length - loop.index %}"
        "{%- endif %}{%- endfor %}" + _LOOP + "{%- if message.role == 'assistant' %}"
        "{%- set content = message.content %}{%- set reasoning = '' %}"
        "{%- if message.reasoning_content is string %}{%- set reasoning = message.reasoning_content %}"
        "{%- elif '</think>' in content %}"
        "{%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
        "{{- '<|im_start|>assistant\n' }}"
        "{%- if loop.index0 > ns.last_query and (loop.last or reasoning) %}"
        "{{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
        "{%- else %}{{- content }}{%- endif %}{{- '<|im_end|>\n' }}"
        "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
    "deepseek": (
        "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
        "{% set ns = namespace(system='') %}"
        "{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system = message['content'] %}"
        "{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system }}"
        + _LOOP
        + "{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
        "{%- elif message['role'] == 'assistant' %}{% set content = message['content'] %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}"
        "{%- endfor -%}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
    ),
    "smollm": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
        "{% if message['role'] == 'assistant' %}"
        "{{ '<|im_start|>assistant\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}"
        "{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "tools": (
        "{%- if tools is not none %}{{- '<|im_start|>system\nFunctions:' }}"
        "{%- for tool in tools %}{%- if tool.function.name == 'hidden' %}{%- continue %}{%- endif %}"
        "{{- '\n' + (tool | tojson) }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}"
        + _LOOP
        + "{{- '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\n' }}"
        "{%- if message.role == 'tool' %}{{- '<tool_response>\n' + message.content + '\n</tool_response>' }}"
        "{%- elif message.content %}{{- message.content }}{%- endif %}"
        "{%- for call in message.tool_calls or [] %}"
        '{{- \'<tool_call>\n{"name": "\' + call.function.name + \'", "arguments": \' }}'
        "{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}"
        "{{- '<|im_end|>\n' }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
}

SPECIAL_TOKENS = (
    *("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *(
        "<start_of_turn>",
        "<end_of_turn>",
        "<｜User｜>",
        "<｜Assistant｜>",
        "<｜end▁of▁sentence｜>",
        "<think>",
        "</think>",
    ),
)


def save_tokenizer(directory: Path) -> str:
    """Writes a `tokenizer.json` of bytes with the special tokens of all families; returns its path."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([*SPECIAL_TOKENS])
    tokenizer.save(str(directory / "tokenizer.json"))
    return str(directory / "tokenizer.json")
