#include "base/prep_thread.h"

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <utility>

#include "base/log.h"

namespace xgen {

struct PrepThread::State {
  std::mutex mutex;
  std::condition_variable wake;
  std::deque<std::function<void()>> queue;
  bool stopping = false;
};

PrepThread::PrepThread(std::size_t max_queued)
    : max_queued_(max_queued), state_(std::make_shared<State>()), thread_([state = state_] { run(state); }) {}

PrepThread::~PrepThread() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  if (thread_.get_id() == std::this_thread::get_id()) {
    run(state_);  // what is queued uses the owner, which ends after this
    thread_.detach();
    return;
  }
  state_->wake.notify_one();
  thread_.join();
}

bool PrepThread::post(std::function<void()> work) {
  {
    std::lock_guard lock(state_->mutex);
    if (state_->queue.size() >= max_queued_) return false;
    state_->queue.push_back(std::move(work));
  }
  state_->wake.notify_one();
  return true;
}

void PrepThread::run(const std::shared_ptr<State>& state) {
  std::unique_lock lock(state->mutex);
  for (;;) {
    state->wake.wait(lock, [&] { return state->stopping || !state->queue.empty(); });
    if (state->queue.empty()) return;
    std::function<void()> work = std::move(state->queue.front());
    state->queue.pop_front();
    lock.unlock();
    try {
      work();
    } catch (const std::exception& fault) {
      // Its request ends with an error, because `work` goes without having answered.
      log::error("text", "fault while a prompt was prepared", {{"reason", fault.what()}});
    }
    work = nullptr;
    lock.lock();
  }
}

}  // namespace xgen
