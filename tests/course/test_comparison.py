"""Two exams side by side: what was gained, what was lost, and what stands in one of them alone."""

from tinyllm_lib.course import compare_exams
from tinyllm_lib.evaluate import Answer, ExamResult


def test_comparing_two_exams(tmp_path, capsys):
    def result(*right):
        rows = zip(("一", "二", "三"), right, strict=False)
        return ExamResult(
            "chat", "step_1", "exam.jsonl", 0.0, [Answer("数", q, "x", "y", r) for q, r in rows]
        )

    result(True, False, False).save(tmp_path / "exam.json")
    saved = ExamResult.load(tmp_path / "exam.json")
    comparison = compare_exams(saved, result(False, True, False))
    assert [x.question for x, _ in comparison.gained] == ["二"]
    assert [x.question for x, _ in comparison.lost] == ["一"]
    assert "33% (1/3)" in capsys.readouterr().out
    shorter = compare_exams(result(False, True), result(True), print_table=False)
    assert [x.question for x, _ in shorter.gained] == ["一"] and not shorter.lost
    assert "\n1 questions stand in only one of the two exams" in shorter.table
    assert "only one" not in comparison.table


def test_questions_that_stand_in_an_exam_twice_are_compared_one_by_one():
    def result(*right):  # 那加蓬呢？ after other turns
        answers = [Answer("follow_up", "那加蓬呢？", "非洲", "x", r) for r in right]
        return ExamResult("chat", "step_1", "exam.jsonl", 0.0, answers)

    comparison = compare_exams(result(True, False), result(False, True), print_table=False)
    assert len(comparison.gained) == len(comparison.lost) == 1
    fewer = compare_exams(result(True, False), result(True), print_table=False)
    assert "\n1 questions stand in only one of the two exams" in fewer.table
