#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <vector>

#include "http/client.h"

namespace xgen::http {

namespace {

constexpr std::size_t kMaxBuffered = 1 << 20;  // bytes that wait for the calling thread; then the sender is held back

// Hands what comes over to the calling thread.
struct Mailbox final : CallListener {
  void on_head(ResponseHead given) override {
    std::lock_guard lock(mutex);
    head = std::move(given);
    arrived.notify_one();
  }
  void on_body(std::string_view chunk) override {
    std::lock_guard lock(mutex);
    body += chunk;
    if (body.size() > kMaxBuffered && call != nullptr) {
      call->pause();
      paused = true;
    }
    arrived.notify_one();
  }
  void on_end(CallEnd given) override {
    std::lock_guard lock(mutex);
    end = std::move(given);
    arrived.notify_one();
  }
  void interrupt() {
    std::lock_guard lock(mutex);
    interrupted = true;
    arrived.notify_one();
  }

  std::mutex mutex;
  std::condition_variable arrived;
  Call* call = nullptr;
  std::optional<ResponseHead> head;
  std::string body;
  std::optional<CallEnd> end;
  bool paused = false;
  bool interrupted = false;
};

}  // namespace

struct CancelToken::State {
  std::mutex mutex;
  bool cancelled = false;
  std::vector<std::weak_ptr<Mailbox>> waiting;
};

CancelToken::CancelToken() : state_(std::make_shared<State>()) {}

void CancelToken::cancel() {
  std::vector<std::weak_ptr<Mailbox>> waiting;
  {
    std::lock_guard lock(state_->mutex);
    state_->cancelled = true;
    waiting.swap(state_->waiting);
  }
  for (const auto& each : waiting)
    if (const auto mailbox = each.lock()) mailbox->interrupt();
}

bool CancelToken::cancelled() const {
  std::lock_guard lock(state_->mutex);
  return state_->cancelled;
}

Status fetch(Client& client, ClientRequest request, const std::function<Status(const ResponseHead&)>& on_head,
             const std::function<Status(std::string_view)>& on_body, const CancelToken* cancel) {
  auto mailbox = std::make_shared<Mailbox>();
  const std::string origin = request.url.origin();
  if (cancel != nullptr) {
    std::lock_guard lock(cancel->state_->mutex);
    if (cancel->state_->cancelled) mailbox->interrupted = true;
    std::erase_if(cancel->state_->waiting, [](const auto& each) { return each.expired(); });
    cancel->state_->waiting.push_back(mailbox);
  }
  const std::unique_ptr<Call> call = client.start(std::move(request), mailbox);
  std::unique_lock lock(mailbox->mutex);
  mailbox->call = call.get();
  std::string body;
  Status status;
  for (;;) {
    mailbox->arrived.wait(
        lock, [&] { return mailbox->interrupted || mailbox->head || !mailbox->body.empty() || mailbox->end; });
    if (mailbox->interrupted) {
      status = make_error(ErrorCode::cancelled, origin + ": cancelled");
      break;
    }
    const auto head = std::exchange(mailbox->head, std::nullopt);
    body.clear();
    body.swap(mailbox->body);
    if (std::exchange(mailbox->paused, false)) call->resume();
    const bool ended = mailbox->end.has_value();
    lock.unlock();
    if (head && on_head) status = on_head(*head);
    if (status && !body.empty() && on_body) status = on_body(body);
    lock.lock();
    if (!status) break;
    if (ended) {
      status = mailbox->end->status;
      break;
    }
  }
  mailbox->call = nullptr;
  return status;
}

}  // namespace xgen::http
