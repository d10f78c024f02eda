// PrepThread: a bounded queue of work that is too long for an I/O thread: templates and tokenising of large prompts.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <thread>

namespace xgen {

class PrepThread {
 public:
  explicit PrepThread(std::size_t max_queued);
  // Runs what is queued, then ends. May be called by that work itself, where it held the last reference to the owner.
  ~PrepThread();
  PrepThread(const PrepThread&) = delete;
  PrepThread& operator=(const PrepThread&) = delete;

  // False: the queue is full, and `work` will not run.
  bool post(std::function<void()> work);

 private:
  struct State;  // the thread's, which may outlive this
  static void run(const std::shared_ptr<State>& state);

  const std::size_t max_queued_;
  const std::shared_ptr<State> state_;
  std::thread thread_;
};

}  // namespace xgen
