"""Chat templates: the same text as transformers', and no way out of the sandbox."""

import time

import pytest

from localllm.errors import RequestError
from serve.engine.templates import ChatTemplate

# Templates written for these tests, in the constructions that real ones use.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = """{{ bos_token }}
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- set ns.system = message.content | trim ~ '\n\n' -%}
        {%- continue -%}
    {%- endif -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == (1 if ns.system else 0)) -%}
        {{ raise_exception('roles must alternate') }}
    {%- endif -%}
    <turn>{{ message.role }}: {{ ns.system if loop.index0 == 1 else '' }}{{ message.content | trim }}{{ eos_token }}
{% endfor %}
{%- if tools %}{{ tools | tojson(indent=2) }}{% endif -%}
{% if add_generation_prompt %}<turn>assistant:{% endif %}"""
GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}[{{ m.content }}]{% endif %}{% endfor %}"
)

CHATS = [
    [{"role": "user", "content": "hi"}],
    [{"role": "system", "content": " Be kind. "}, {"role": "user", "content": "hi\n"}],
    [
        {"role": "user", "content": "<b>&'\"</b> ü 中"},
        {"role": "assistant", "content": "  yes "},
        {"role": "user", "content": "more"},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "f<&>", "description": "é"}}]


@pytest.mark.parametrize("source", [CHATML, TURNS, GENERATION])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_the_same_text_as_transformers(source, chat, tools):
    from transformers.utils.chat_template_utils import render_jinja_template

    names = {"bos_token": "<s>", "eos_token": "</s>"}
    wanted, _ = render_jinja_template(
        conversations=[chat], tools=tools, chat_template=source, add_generation_prompt=True, **names
    )
    got = ChatTemplate(source, "<s>", "</s>").render(chat, tools=tools)
    assert got == wanted[0]


def test_a_template_that_refuses_is_a_request_error():
    chat = [{"role": "assistant", "content": "first"}]
    with pytest.raises(RequestError, match="roles must alternate"):
        ChatTemplate(TURNS).render(chat)


def test_a_damaged_template_is_a_request_error():
    with pytest.raises(RequestError, match="damaged"):
        ChatTemplate("{% for x in %}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'system'}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ ''['__cla' ~ 'ss__'] }}{{ ('' | attr('__class__')).__mro__ }}",
    ],
)
def test_the_sandbox_holds(source):
    with pytest.raises(RequestError):
        ChatTemplate(source).render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 100000000 }}",
        "{{ 9 ** 99999999 }}",
        "{{ [0] * 100000000 }}",
        "{{ ('a' * 1000000) * 1000000 }}",
        "{% for a in range(99999) %}{% for b in range(999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
        "{% for a in range(999999999) %}{% endfor %}",
    ],
)
def test_size_is_capped(source):
    with pytest.raises(RequestError):
        ChatTemplate(source).render([], max_seconds=20)


def test_time_is_capped():
    source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    began = time.monotonic()
    with pytest.raises(RequestError, match="took longer than"):
        ChatTemplate(source).render([], max_seconds=0.2)
    assert time.monotonic() - began < 10


def test_messages_are_not_changed():
    chat = [{"role": "user", "content": "x"}]
    ChatTemplate(CHATML).render(chat)
    assert chat == [{"role": "user", "content": "x"}]
