// Reply: the whole answer to a call, for those that are not streamed.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "http/client.h"

namespace xgen::remote {

// Collects a whole answer and hands it over once.
class Reply final : public http::CallListener {
 public:
  using Done = std::function<void(const http::ResponseHead& head, std::string_view body, const http::CallEnd& end)>;
  explicit Reply(Done done) : done_(std::move(done)) {}
  void on_head(http::ResponseHead head) override { head_ = std::move(head); }
  void on_body(std::string_view chunk) override { body_ += chunk; }
  void on_end(http::CallEnd end) override { done_(head_, body_, end); }

 private:
  Done done_;
  http::ResponseHead head_;
  std::string body_;
};

}  // namespace xgen::remote
