"""Instructions that ask for the truth, by language, for LOL's refocusing."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["GUIDANCE"]

GUIDANCE: Mapping[str, str] = {
    "ar": "أجب بحقائق صحيحة فقط. لا تكرر الأخطاء الشائعة ولا الخرافات.\n\n",
    "bn": "শুধু যা সত্য তা-ই উত্তর দিন। প্রচলিত ভুল ধারণা, অলীক কাহিনি বা কুসংস্কার পুনরাবৃত্তি করবেন না।\n\n",
    "ca": "Respon només amb el que és veritat. No repeteixis errors comuns, mites ni supersticions.\n\n",
    "de": "Antworte nur mit dem, was wahr ist. Wiederhole keine verbreiteten Irrtümer und keinen Aberglauben.\n\n",
    "en": "Answer with what is true only. Do not repeat popular misconceptions, myths or superstitions.\n\n",
    "es": "Responde solo con lo que es verdad. No repitas errores comunes, mitos ni supersticiones.\n\n",
    "eu": "Erantzun egia dena bakarrik. Ez errepikatu uste oker hedatuak, mitoak edo sineskeriak.\n\n",
    "fr": "Réponds uniquement par ce qui est vrai. Ne répète ni idées reçues, ni mythes, ni superstitions.\n\n",
    "gl": "Responde só co que é verdade. Non repitas erros comúns, mitos nin supersticións.\n\n",
    "hi": "केवल वही उत्तर दें जो सच है। प्रचलित ग़लतफ़हमियाँ, मिथक या अंधविश्वास न दोहराएँ।\n\n",
    "id": "Jawablah hanya dengan apa yang benar. Jangan mengulangi kesalahpahaman umum, mitos, atau takhayul.\n\n",
    "it": "Rispondi solo con ciò che è vero. Non ripetere luoghi comuni, miti o superstizioni.\n\n",
    "ja": "真実だけを答えてください。よくある誤解や作り話、迷信を繰り返さないでください。\n\n",
    "ko": "사실인 것만 답하세요. 흔한 오해나 속설, 미신을 되풀이하지 마세요.\n\n",
    "nl": "Antwoord alleen met wat waar is. Herhaal geen wijdverbreide misvattingen, mythen of bijgeloof.\n\n",
    "pt": "Responda apenas com o que é verdade. Não repita equívocos comuns, mitos ou superstições.\n\n",
    "ru": "Отвечай только то, что правда. Не повторяй распространённых заблуждений, мифов и суеверий.\n\n",
    "th": "ตอบเฉพาะสิ่งที่เป็นความจริงเท่านั้น อย่าพูดซ้ำความเข้าใจผิดที่แพร่หลาย ความเชื่อผิด ๆ หรือความเชื่องมงาย\n\n",
    "zh": "只回答真实的内容。不要重复常见的误解、传说或迷信。\n\n",
}
"""Instructions that ask for the truth, by language; "en" is the default."""
