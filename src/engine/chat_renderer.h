// The model's chat template as a function from messages to text.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "engine/local_service.h"
#include "text/tokenizer.h"

namespace xgen::engine {

// Empty where the model's files have no template. Errors: invalid_argument where the template cannot be parsed;
// `source` names the files in the message.
Result<ChatRenderer> make_chat_renderer(const std::shared_ptr<const text::Tokenizer>& tokenizer,
                                        const std::string& source);

}  // namespace xgen::engine
