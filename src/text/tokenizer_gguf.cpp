// GGUF vocabularies, tokenised as llama.cpp does.
#include <cmath>

#include "text/gguf_vocab.h"
#include "text/tokenizer_parts.h"
#include "text/word_patterns.h"

namespace xgen::text {
namespace {

Error bad(const std::string& what) { return make_error(ErrorCode::invalid_argument, what); }

PieceType type_of(const GgufVocab& v, std::size_t i) {
  return v.types.empty() ? PieceType::normal : static_cast<PieceType>(v.types[i]);
}

// Control, unknown and user-defined tokens are taken out of the text before the model sees it.
Status add_tokens(const GgufVocab& v, TokenizerParts& parts) {
  for (std::size_t i = 0; i < v.tokens.size(); ++i) {
    const PieceType type = type_of(v, i);
    if (type != PieceType::control && type != PieceType::unknown && type != PieceType::user_defined) continue;
    AddedToken token;
    token.content = v.tokens[i];
    token.id = static_cast<std::int32_t>(i);
    token.normalized = false;
    token.special = type != PieceType::user_defined;
    if (Status s = parts.add_token(std::move(token)); !s) return s;
  }
  return {};
}

Status load_bpe(const GgufVocab& v, TokenizerParts& parts) {
  const GgufPreTokenizer* pre = find_gguf_pre_tokenizer(v.pre);
  if (pre == nullptr) {
    return make_error(ErrorCode::unsupported,
                      "tokenizer.ggml.pre '" + std::string(v.pre.substr(0, 100)) + "' is not a known pre-tokenizer");
  }
  if (Status s = add_split_steps(pre->regexes, parts.pre_tokenizer); !s) return s;
  BpeModel::Options options;
  options.byte_level = true;
  options.ignore_merges = pre->ignore_merges;
  auto model = std::make_unique<BpeModel>(parts.vocab, std::move(options));
  std::vector<BpeModel::NamedMerge> merges;
  merges.reserve(v.merges.size());
  std::string joined;
  for (std::size_t i = 0; i < v.merges.size(); ++i) {
    const std::string where = "tokenizer.ggml.merges[" + std::to_string(i) + "]";
    // The first blank may belong to the left piece's own text only if it leads.
    const std::size_t blank = v.merges[i].find(' ', 1);
    if (blank == std::string_view::npos || blank + 1 >= v.merges[i].size()) {
      return bad(where + " is not two pieces with a blank between");
    }
    const std::string_view left = v.merges[i].substr(0, blank), right = v.merges[i].substr(blank + 1);
    const std::int32_t left_id = parts.vocab.find(left), right_id = parts.vocab.find(right);
    const std::int32_t whole = parts.vocab.find(joined.assign(left).append(right));
    if (left_id < 0 || right_id < 0 || whole < 0) return bad(where + " names a piece that is not in the vocabulary");
    merges.push_back({left_id, right_id, whole});
  }
  model->set_merges(merges);
  parts.model = std::move(model);
  parts.decoder.push_back(decoder_stage(DecoderStage::Kind::byte_level));
  if (!parts.add_bos) parts.add_bos = pre->add_bos;
  return add_tokens(v, parts);
}

Status load_spm(const GgufVocab& v, bool unigram, TokenizerParts& parts) {
  if (v.scores.size() != v.tokens.size()) return bad("tokenizer.ggml.scores must hold one score per token");
  SentencePieceParts spm;
  spm.scores.assign(v.scores.begin(), v.scores.end());
  for (std::size_t i = 0; i < v.tokens.size(); ++i) spm.types.push_back(type_of(v, i));
  spm.unigram = unigram;
  spm.byte_fallback = true;  // where the vocabulary has the byte tokens
  spm.add_dummy_prefix = v.add_space_prefix.value_or(true);
  spm.remove_extra_whitespaces = v.remove_extra_whitespaces.value_or(false);
  spm.user_defined_as_added = true;
  if (unigram && !v.precompiled_charsmap.empty()) {
    auto map =
        Charsmap::parse({reinterpret_cast<const char*>(v.precompiled_charsmap.data()), v.precompiled_charsmap.size()});
    if (!map) return bad("tokenizer.ggml." + map.error().message);
    spm.charsmap = std::make_shared<const Charsmap>(std::move(*map));
  }
  if (!unigram) {
    // llama.cpp's defaults for files that leave the keys out.
    const auto fallback = [&](std::optional<std::int32_t>& id, std::int32_t value) {
      if (!id && static_cast<std::size_t>(value) < v.tokens.size()) id = value;
    };
    fallback(parts.bos, 1);
    fallback(parts.eos, 2);
    fallback(parts.unk, 0);
    if (!parts.add_bos) parts.add_bos = true;
  } else if (!parts.add_eos) {
    parts.add_eos = true;
  }
  return make_sentencepiece(std::move(spm), parts);
}

Status load_wpm(const GgufVocab& v, TokenizerParts& parts) {
  constexpr std::string_view kWordStart = "\xE2\x96\x81";  // llama.cpp marks beginnings where BERT marks continuations
  parts.normalizer.steps.emplace_back();
  parts.normalizer.steps.back().kind = NormalizerStep::Kind::bert;
  parts.pre_tokenizer.steps.emplace_back();
  parts.pre_tokenizer.steps.back().kind = PreTokenizerStep::Kind::bert;
  WordPieceModel::Options options;
  options.first_prefix = kWordStart;
  options.subword_prefix.clear();
  options.max_chars = 1000;
  if (!parts.unk && v.tokens.size() > 100) parts.unk = 100;
  options.unknown = parts.unk.value_or(kNoToken);
  parts.model = std::make_unique<WordPieceModel>(parts.vocab, std::move(options));
  parts.decoder = sentencepiece_decoder(true);
  return add_tokens(v, parts);
}

}  // namespace

Status load_gguf(const GgufVocab& v, TokenizerParts& parts) {
  if (v.tokens.empty()) return bad("tokenizer.ggml.tokens is missing or empty");
  if (v.tokens.size() > static_cast<std::size_t>(Vocab::kMaxId)) return bad("tokenizer.ggml.tokens: too many");
  if (!v.types.empty() && v.types.size() != v.tokens.size()) {
    return bad("tokenizer.ggml.token_type must hold one type per token");
  }
  for (std::size_t i = 0; i < v.types.size(); ++i) {
    if (v.types[i] < 1 || v.types[i] > 6) {
      return bad("tokenizer.ggml.token_type[" + std::to_string(i) + "] is " + std::to_string(v.types[i]));
    }
  }
  std::size_t bytes = 0;
  for (const std::string_view token : v.tokens) bytes += token.size();
  parts.vocab.reserve(v.tokens.size(), bytes);
  // Of equal pieces the last is found, as in llama.cpp.
  for (std::size_t i = 0; i < v.tokens.size(); ++i) parts.vocab.add(v.tokens[i], static_cast<std::int64_t>(i));
  parts.vocab.index();

  const auto take = [&](const char* key, const std::optional<std::int64_t>& id,
                        std::optional<std::int32_t>& out) -> Status {
    // Some converters write 2^32 - 1 for "none".
    if (!id || *id == -1 || *id == 0xFFFFFFFFll) return {};
    if (*id < 0 || *id >= static_cast<std::int64_t>(v.tokens.size())) {
      return bad("tokenizer.ggml." + std::string(key) + "_token_id " + std::to_string(*id) +
                 " is not in the vocabulary");
    }
    out = static_cast<std::int32_t>(*id);
    return {};
  };
  std::optional<std::int32_t> eot, sep, cls, mask;
  if (Status s = take("bos", v.bos_id, parts.bos); !s) return s;
  if (Status s = take("eos", v.eos_id, parts.eos); !s) return s;
  if (Status s = take("padding", v.pad_id, parts.pad); !s) return s;
  if (Status s = take("unknown", v.unk_id, parts.unk); !s) return s;
  if (Status s = take("eot", v.eot_id, eot); !s) return s;
  if (Status s = take("seperator", v.sep_id, sep); !s) return s;
  if (Status s = take("cls", v.cls_id, cls); !s) return s;
  if (Status s = take("mask", v.mask_id, mask); !s) return s;
  parts.add_bos = v.add_bos;
  parts.add_eos = v.add_eos;

  Status status;
  if (v.model == "gpt2") {
    status = load_bpe(v, parts);
  } else if (v.model == "llama") {
    status = load_spm(v, false, parts);
  } else if (v.model == "t5") {
    status = load_spm(v, true, parts);
  } else if (v.model == "bert") {
    if (!cls) cls = parts.bos;
    if (cls) parts.prefix.push_back(*cls);
    if (sep) parts.suffix.push_back(*sep);
    status = load_wpm(v, parts);
  } else {
    status = make_error(ErrorCode::unsupported, "tokenizer.ggml.model '" + std::string(v.model.substr(0, 100)) +
                                                    "' is not known (llama, gpt2, bert, t5)");
  }
  if (!status) return status;
  if (v.add_sep.value_or(false) && sep && v.model != "bert") parts.suffix.push_back(*sep);
  const auto role = [&](const char* name, const std::optional<std::int32_t>& id) {
    if (id) parts.special_tokens.emplace_back(name, std::string(parts.piece(*id)));
  };
  role("eot_token", eot);
  role("sep_token", sep);
  role("cls_token", cls);
  role("mask_token", mask);
  if (!v.chat_template.empty()) parts.chat_templates.emplace_back("default", std::string(v.chat_template));
  return {};
}

}  // namespace xgen::text
